"""The one place that knows how to open a study's database well."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from filelock import FileLock

from ..errors import UserError
from .compressed import unpacked
from .errors import explain
from .rdb import StudyStorage
from .retry import Patience
from .tables import STUDIES, Database, hasten
from .url import hide_passwords, parse_url, shown

PATIENCE_S = 3600.0
_BRIEF_PATIENCE_S = 10.0
_SQLITE_BUSY_S = 10
_CONNECT_S = 10
# The worker's own statements and its pulse's; one more for the moment when both hold on.
_POOL_SIZE = 2
# A worker's settings of its PostgreSQL session.
_SESSION = {
    # Heartbeats are compared with now() of whichever connection asks.
    "timezone": "UTC",
    # The server lets go of the locks of a machine that vanished, or of a process that was halted,
    # in the middle of a transaction; by its own defaults it would keep them for two hours, or ever.
    "tcp_keepalives_idle": 15,  # s
    "tcp_keepalives_interval": 5,  # s
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # ms
    "idle_in_transaction_session_timeout": 120_000,  # ms
}
_LOCK_KEY = 0x72756E6573  # of PostgreSQL's advisory lock while tables are made


def open_storage(url: str, worker: str = "", patience_s: float = PATIENCE_S) -> StudyStorage:
    """SQLite (write-ahead log, one machine) or PostgreSQL, with its tables made if need be.

    Args:
        worker: who will claim trials; by default a name of this process.
        patience_s: for how long an operation is tried again while the database is away.

    Raises:
        UserError: the URL is malformed or the database can't be opened; no password is shown.
    """
    parsed = parse_url(url)
    with _explained(url), _made_by_one(parsed):
        database = _open(url, patience_s)
    if parsed.get_backend_name() == "sqlite":
        sa.event.listen(database.engine, "connect", _relax_sync)
        database.engine.dispose()  # connections from before the listener
    hasten(database.engine)
    return StudyStorage(database, worker or f"{socket.gethostname()}:{os.getpid()}")


def wait_for_server(url: str, limit_s: float) -> None:
    """Return once the database's server lets this user in; a SQLite file has none to wait for.

    Raises:
        UserError: it did not within ``limit_s``, or waiting would not help.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        return
    with _explained(url):
        engine = sa.create_engine(parsed, **_engine_options(parsed))
        try:
            Patience(shown(url), limit_s).call(lambda: engine.connect().close())
        finally:
            engine.dispose()


def open_existing(url: str, study: str) -> StudyStorage:
    """A database that is there already, for a look: nothing is made, and it is waited for briefly.

    Args:
        study: as the person named it, for the advice.

    Raises:
        UserError: there is no such database, no study was ever made in it, or it can't be opened.
    """
    parsed = parse_url(url)
    advice = f"start a worker first: python -m hpo.worker --study {study}"
    _check_file(url, advice)
    with _explained(url):
        engine = sa.create_engine(parsed, **_engine_options(parsed))
        try:
            has_studies = sa.inspect(engine).has_table(STUDIES.name)
        finally:
            engine.dispose()
    if not has_studies:
        raise UserError(f"{shown(url)} has no studies; {advice}")
    return open_storage(url, patience_s=_BRIEF_PATIENCE_S)


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
            raise UserError(str(error).replace(shown(plain), url)) from error
        storage.database.patience.what = shown(url)
        try:
            yield storage
        finally:
            storage.database.engine.dispose()


@contextmanager
def reading(url: str) -> Iterator[sa.Connection]:
    """A database as it is at this moment, however long one looks at it; it takes no writes.

    Rights to read are enough, and nothing in the database is changed.

    Raises:
        UserError: there is no such database, no study was ever made in it, it can't be opened,
            or it failed while it was read.
    """
    parsed = parse_url(url)
    _check_file(url, "write the URL of a database that is there")
    is_sqlite = parsed.get_backend_name() == "sqlite"
    with ExitStack() as stack:
        with _explained(url):
            engine = sa.create_engine(parsed, **{**_engine_options(parsed), "pool_size": 1})
            stack.callback(engine.dispose)
            if is_sqlite:
                sa.event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA query_only=ON"))
                options: dict[str, Any] = {
                    "isolation_level": "AUTOCOMMIT"
                }  # its driver begins none to read
            else:
                options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            with engine.connect() as connection:
                if not _has_tables(connection):
                    raise UserError(f"{shown(url)} has no studies; write another database's URL")
            _open(url, _BRIEF_PATIENCE_S).engine.dispose()  # it checks the tables' release
            connection = stack.enter_context(engine.connect().execution_options(**options))
            if is_sqlite:
                connection.exec_driver_sql("BEGIN")
            never_idle(connection)

        def explain_failure(context: sa.engine.ExceptionContext) -> None:
            words = explain(context.sqlalchemy_exception or context.original_exception)
            raise UserError(f"can't read {shown(url)}: {hide_passwords(words, parsed)}")

        sa.event.listen(engine, "handle_error", explain_failure)
        yield connection


def never_idle(connection: sa.Connection) -> None:
    """Let this transaction be idle for as long as it takes, while another database is busy."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """What goes wrong when a database is opened, as one line without a password."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
        words = hide_passwords(explain(error), parse_url(url))
        raise UserError(f"can't open {shown(url)}: {words}") from error
    except RuntimeError as error:  # Optuna's word for tables of another version
        raise UserError(f"can't open {shown(url)}: {_version_advice(str(error))}") from error


def _open(url: str, patience_s: float) -> Database:
    parsed = parse_url(url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return Database(
            parsed.render_as_string(hide_password=False),
            Patience(shown(url), patience_s),
            engine_kwargs=_engine_options(parsed),
        )


def _check_file(url: str, advice: str) -> None:
    """Raises UserError if this is SQLite and there is no such file, which opening would make."""
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite":
        return
    # `sqlite://` is in memory: a new one for each process.
    path = (parsed.database or ":memory:").removeprefix("file:")
    if not Path(path).is_file():
        raise UserError(f"{shown(url)}: no such database; {advice}")


def _engine_options(url: sa.URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _SQLITE_BUSY_S}}
    return {
        "pool_pre_ping": True,
        "pool_size": _POOL_SIZE,
        "max_overflow": 1,
        "connect_args": {
            **_prepared(url),
            "connect_timeout": _CONNECT_S,
            "options": " ".join(f"-c {name}={value}" for name, value in _SESSION.items()),
            # A link that was cut without a word is noticed in half a minute.
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        },
    }


def _prepared(url: sa.URL) -> dict[str, int | None]:
    """After how often a statement is prepared, if the URL says so; None: never.

    Older poolers of transactions do not know which connection has prepared what.
    """
    given = url.query.get("prepare_threshold")
    if given is None:
        return {}
    if given == "none":
        return {"prepare_threshold": None}
    if not isinstance(given, str) or not given.isdecimal():
        raise UserError(
            f"prepare_threshold in the database URL is {given!r}; write none, or a number"
        )
    return {"prepare_threshold": int(given)}


@contextmanager
def _made_by_one(url: sa.URL) -> Iterator[None]:
    """Connect, and while the tables are not there yet let one process at a time go on."""
    engine = sa.create_engine(url, **{**_engine_options(url), "pool_size": 1})
    try:
        with engine.connect() as connection:
            if url.get_backend_name() == "sqlite":
                _prepare_sqlite(connection, Patience(str(url), _SQLITE_BUSY_S))
            if _has_tables(connection):
                # Ended, because a pooler's connections are few: those of many workers that open
                # the database would each wait for another's.
                connection.rollback()
                yield
                return
            if url.get_backend_name() == "sqlite":
                with FileLock(_lock_path(url)) if url.database else nullcontext():
                    yield
            else:
                # Held until the connection is closed, however this process ends; of the
                # transaction and not of the session, which behind a pooler is not ours.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_KEY)))
                yield
    finally:
        engine.dispose()


def _prepare_sqlite(connection: sa.Connection, patience: Patience) -> None:
    """Readers and a writer of one file shall not wait for each other; all must be able to write."""

    def prepare() -> None:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        version = connection.exec_driver_sql("PRAGMA user_version").scalar()
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        # On a file that can't be written, only a write says so.
        connection.exec_driver_sql(f"PRAGMA user_version={version}")
        connection.exec_driver_sql("ROLLBACK")

    patience.call(prepare)


def _has_tables(connection: sa.Connection) -> bool:
    # The last thing that Optuna writes when it makes its tables.
    if not sa.inspect(connection).has_table("alembic_version"):
        return False
    return connection.exec_driver_sql("SELECT 1 FROM alembic_version").first() is not None


def _lock_path(url: sa.URL) -> Path:
    # Not beside the database: a directory of studies shall hold studies.
    name = hashlib.sha256(str(Path(url.database or "").resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"hpo-{os.getuid()}-{name}.lock"


def _relax_sync(connection: Any, _record: object) -> None:
    # With a write-ahead log a power cut can lose the last transactions, but never corrupts.
    connection.execute("PRAGMA synchronous=NORMAL")


def _version_advice(message: str) -> str:
    if "storage upgrade" in message:
        remedy = "back it up, then run: optuna storage upgrade --storage URL"
    else:
        remedy = "install that release, or name another database"
    made_by = re.search(r"set up by optuna ([\w.]+)", message)
    return (
        f"its tables were made by Optuna {made_by[1] if made_by else 'of another release'}, "
        f"and this is {optuna.__version__}; {remedy}"
    )


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
        raise UserError(
            f"{storage.database.patience.what} has no study {name!r}; it has: {known}"
        ) from error
