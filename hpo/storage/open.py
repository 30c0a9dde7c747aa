"""How a study's database is opened."""

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
    """SQLite (write-ahead log, one machine) or PostgreSQL, with its tables made if need be.

    Args:
        worker: who will claim trials; None: a name of this process.
        retry_s: for how long an operation is tried again while the database is away.

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
    """A database whose tables are there, for a look: rights to read are enough.

    Nothing in it is changed, not even SQLite's journal mode. Writes are tried where somebody asks
    for them.

    Raises:
        UserError: the URL is malformed or the database can't be opened; no password is shown.
    """
    with _explained(url):
        parsed = parse_url(url)
        rdb = _open(dialect_of(parsed).to_read(parsed))
    worker = f"{socket.gethostname()}:{os.getpid()}"
    return StudyStorage(rdb, worker, Retry(shown(url), retry_s))


def has_studies(url: str) -> bool:
    """Whether the database is there, with the tables for studies in it.

    Raises:
        UserError: the URL is malformed or the database can't be opened; no password is shown.
    """
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        return False
    with _explained(url), _engine(url, to_read=True) as engine, engine.connect() as connection:
        return _has_tables(connection)


def wait_for_server(url: str, limit_s: float) -> None:
    """Return once the database's server lets this user in; a SQLite file has none to wait for.

    Raises:
        UserError: it did not within ``limit_s``, or waiting would not help.
    """
    if sqlite_file(url) is not None:
        return
    with _explained(url), _engine(url) as engine:
        Retry(shown(url), limit_s).call(lambda: engine.connect().close())


def open_existing(url: str, study: str, *, to_write: bool = False) -> StudyStorage:
    """A database that is there already: nothing is made, and it is waited for briefly.

    Args:
        study: as the person named it, for the advice.
        to_write: whether more than a look at it is wanted.

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
    """What `open_existing` opens, closed afterwards; of a compressed file a copy.

    Raises:
        UserError: as `open_existing`, or the file can't be unpacked.
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
    """A database as it is at this moment, however long one looks at it; it takes no writes.

    Rights to read are enough, and nothing in the database is changed.

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
            _open(engine.url).engine.dispose()  # it checks the tables' release
            connection = stack.enter_context(dialect_of(engine).snapshot(engine))

        def explain_failure(context: sa.engine.ExceptionContext) -> None:
            if not isinstance(context.original_exception, Exception):
                return  # somebody stops this process, in the middle of a statement
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
    """The study called ``name``.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
    except KeyError as error:
        known = ", ".join(sorted(s.study_name for s in storage.get_all_studies())) or "none yet"
        raise UserError(f"{storage.name} has no study {name!r}; it has: {known}") from error


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """What goes wrong when a database is opened, as one line without a password."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
        message = hide_passwords(explain(error), url)
        raise _kind_of(error)(f"can't open {shown(url)}: {message}") from error
    except RuntimeError as error:  # Optuna's, for tables of another release
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
    """Raises UserError if this is SQLite and there is no such file, which opening would make."""
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        raise UserError(f"{shown(url)}{_where(file)}: no such database; {advice}")


def _where(file: Path) -> str:
    """Where a file would be that a URL names from somewhere else."""
    return "" if file == IN_MEMORY or file.is_absolute() else f" ({file.absolute()})"


@contextmanager
def _one_makes_tables(url: str) -> Iterator[None]:
    """Connect, and while the tables are not there yet let one process at a time go on."""
    with _engine(url) as engine, engine.connect() as connection:
        dialect = dialect_of(engine)
        Retry(shown(url), _BRIEF_RETRY_S).call(lambda: dialect.prepare(connection))
        if not _has_tables(connection):
            with dialect.table_lock(connection):
                if not _has_tables(connection):  # another process may have made them meanwhile
                    yield
                    return
        # A pooler's connections are few. Many workers that open the database would each wait for
        # another's.
        connection.close()
        engine.dispose()
        yield


def _has_tables(connection: sa.Connection) -> bool:
    # The last thing that Optuna writes when it makes its tables.
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
