"""Open a study's database."""

from __future__ import annotations

import os
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage

from ..errors import DatabaseAwayError, UserError
from .compressed import unpacked
from .dialects import dialect_of
from .errors import explain, is_transient
from .optuna_internals import open_rdb
from .rdb import StudyStorage
from .retry import Retry
from .tables import add_state_index
from .url import IN_MEMORY, hide_passwords, parse_url, shown, sqlite_file

RETRY_S = 3600.0
_BRIEF_RETRY_S = 10.0


def open_storage(url: str, worker: str | None = None, retry_s: float = RETRY_S) -> StudyStorage:
    """Open SQLite (write-ahead log, one machine) or PostgreSQL, and create missing tables.

    Args:
        worker: name under which trials are claimed; None: a name of this process.
        retry_s: how long an operation is retried while the database is away.

    Raises:
        UserError: the URL is malformed or the database can't be opened; no password is shown.
    """
    if sqlite_file(url) == IN_MEMORY:
        raise UserError(
            f"{shown(url)} is a database in memory, which no other process sees; "
            "write sqlite:///FILE.db"
        )
    with _explained(url), _one_makes_tables(url):
        rdb = _open(parse_url(url))
        add_state_index(rdb.engine)
    if worker is None:
        worker = f"{socket.gethostname()}:{os.getpid()}"
    return StudyStorage(rdb, worker, Retry(shown(url), retry_s))


def open_to_read(url: str, retry_s: float = _BRIEF_RETRY_S) -> StudyStorage:
    """Open a database that has its tables, to read it; read rights are enough.

    Nothing in it is changed, not even SQLite's journal mode. A write is tried if somebody asks for
    one.

    Raises:
        UserError: the URL is malformed or the database can't be opened; no password is shown.
    """
    with _explained(url):
        parsed = parse_url(url)
        rdb = _open(dialect_of(parsed).to_read(parsed))
    worker = f"{socket.gethostname()}:{os.getpid()}"
    return StudyStorage(rdb, worker, Retry(shown(url), retry_s))


def has_studies(url: str) -> bool:
    """Whether the database exists and has Optuna's tables.

    Raises:
        UserError: the URL is malformed or the database can't be opened; no password is shown.
    """
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        return False
    with _explained(url), _engine(url, to_read=True) as engine, engine.connect() as connection:
        return _has_tables(connection)


def wait_for_server(url: str, limit_s: float) -> None:
    """Wait until the database's server accepts this user; with SQLite there is no wait.

    Raises:
        UserError: it did not accept within ``limit_s``, or waiting would not help.
    """
    if sqlite_file(url) is not None:
        return
    with _explained(url), _engine(url) as engine:
        Retry(shown(url), limit_s).call(lambda: engine.connect().close())


def open_existing(url: str, study: str, *, to_write: bool = False) -> StudyStorage:
    """Open a database that exists already, with a short timeout; nothing is created.

    Args:
        study: the study as the user named it, for the advice in errors.
        to_write: whether the caller wants to write.

    Raises:
        UserError: there is no such database, no study was ever made in it, or it can't be opened.
    """
    advice = f"start a worker first: python -m hpo.worker --study {study}"
    _check_file(url, advice)
    if not has_studies(url):
        raise UserError(f"{shown(url)} has no studies; {advice}")
    return open_storage(url, retry_s=_BRIEF_RETRY_S) if to_write else open_to_read(url)


@contextmanager
def looked_at(url: str, study: str) -> Iterator[StudyStorage]:
    """Like `open_existing`, and closed afterwards; a compressed file is opened as a copy.

    Raises:
        UserError: as in `open_existing`, or the file can't be unpacked.
    """
    with unpacked(url) as plain:
        try:
            storage = open_existing(plain, study)
        except UserError as error:
            if plain == url:
                raise
            raise type(error)(str(error).replace(shown(plain), url)) from error
        storage.retry.name = shown(url)
        try:
            yield storage
        finally:
            storage.engine.dispose()


@contextmanager
def reading(url: str) -> Iterator[sa.Connection]:
    """A read-only snapshot of a database.

    Read rights are enough, and nothing in the database is changed.

    Raises:
        UserError: there is no such database, no study was ever made in it, it can't be opened,
            or it failed while it was read.
    """
    _check_file(url, "write the URL of a database that is there")
    with ExitStack() as stack:
        with _explained(url):
            engine = stack.enter_context(_engine(url, to_read=True))
            with engine.connect() as connection:
                if not _has_tables(connection):
                    raise UserError(f"{shown(url)} has no studies; write another database's URL")
            _open(engine.url).engine.dispose()  # this checks the release of the tables
            connection = stack.enter_context(dialect_of(engine).snapshot(engine))

        def explain_failure(context: sa.engine.ExceptionContext) -> None:
            if not isinstance(context.original_exception, Exception):
                return  # this process was stopped in the middle of a statement
            error = context.sqlalchemy_exception or context.original_exception
            message = hide_passwords(explain(error), url)
            raise _kind_of(error)(f"can't read {shown(url)}: {message}")

        sa.event.listen(engine, "handle_error", explain_failure)
        yield connection


def load_study(
    storage: StudyStorage,
    name: str,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """Load the study called ``name``.

    Raises:
        UserError: there is no such study; the message lists the studies that exist.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
    except KeyError as error:
        known = ", ".join(sorted(s.study_name for s in storage.get_all_studies())) or "none yet"
        raise UserError(f"{storage.name} has no study {name!r}; it has: {known}") from error


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn errors of opening a database into UserError, in one line without a password."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
        message = hide_passwords(explain(error), url)
        raise _kind_of(error)(f"can't open {shown(url)}: {message}") from error
    except RuntimeError as error:  # Optuna raises it for tables of another release
        raise UserError(f"can't open {shown(url)}: {_release_advice(str(error))}") from error


def _kind_of(error: BaseException) -> type[UserError]:
    return DatabaseAwayError if is_transient(error) else UserError


def _open(parsed: sa.URL) -> RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        plain = parsed.render_as_string(hide_password=False)
        return open_rdb(plain, dialect_of(parsed).engine_options(parsed))


@contextmanager
def _engine(url: str, to_read: bool = False) -> Iterator[sa.Engine]:
    """An engine of one connection, closed afterwards."""
    parsed = parse_url(url)
    if to_read:
        parsed = dialect_of(parsed).to_read(parsed)
    options = dialect_of(parsed).engine_options(parsed)
    engine = sa.create_engine(parsed, **{**options, "pool_size": 1})
    try:
        yield engine
    finally:
        engine.dispose()


def _check_file(url: str, advice: str) -> None:
    """Raise UserError if a SQLite file does not exist, because opening would create it."""
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        raise UserError(f"{shown(url)}{_where(file)}: no such database; {advice}")


def _where(file: Path) -> str:
    """A hint at where the file of a relative URL is looked for."""
    return "" if file == IN_MEMORY or file.is_absolute() else f" ({file.absolute()})"


@contextmanager
def _one_makes_tables(url: str) -> Iterator[None]:
    """Connect; while the tables do not exist, let in one process at a time."""
    with _engine(url) as engine, engine.connect() as connection:
        dialect = dialect_of(engine)
        Retry(shown(url), _BRIEF_RETRY_S).call(lambda: dialect.prepare(connection))
        if not _has_tables(connection):
            with dialect.table_lock(connection):
                if not _has_tables(connection):  # another process may have created them meanwhile
                    yield
                    return
        # Close it, because a pooler has few connections: many workers that open the database would
        # wait for each other's.
        connection.close()
        engine.dispose()
        yield


def _has_tables(connection: sa.Connection) -> bool:
    # Optuna writes this last when it creates its tables.
    if not sa.inspect(connection).has_table("alembic_version"):
        return False
    return connection.exec_driver_sql("SELECT 1 FROM alembic_version").first() is not None


def _release_advice(message: str) -> str:
    if "storage upgrade" in message:
        remedy = "back it up, then run: optuna storage upgrade --storage URL"
    else:
        remedy = "install that release, or name another database"
    made_by = re.search(r"set up by optuna ([\w.]+)", message)
    return (
        f"its tables were made by Optuna {made_by[1] if made_by else 'of another release'}, "
        f"and this is {optuna.__version__}; {remedy}"
    )
