"""What differs between SQLite and PostgreSQL: one object for each."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.dialects import postgresql, sqlite

from ..errors import UserError

IN_MEMORY = Path(":memory:")  # a database without a file, which other processes can't see


class Dialect:
    """A kind of database: connect arguments, locks, statements, and the meaning of its errors."""

    bytewise: str  # name of the collation that compares texts byte by byte

    def engine_options(self, url: sa.URL) -> dict[str, Any]:
        """Keyword arguments for `sqlalchemy.create_engine`.

        Raises:
            UserError: a parameter of the URL is malformed.
        """
        raise NotImplementedError

    def file(self, url: sa.URL) -> Path | None:
        """The database's file; None if the database is on a server."""
        return None

    def to_read(self, url: sa.URL) -> sa.URL:
        """The URL to read the database without the right to write."""
        return url

    def prepare(self, connection: sa.Connection) -> None:
        """Set up the database itself; may be repeated at any time."""

    def tune(self, engine: sa.Engine) -> None:
        """Set up the connections that ``engine`` opens from now on."""

    def table_lock(self, connection: sa.Connection) -> AbstractContextManager[object]:
        """Lock out other processes while this one creates the tables."""
        raise NotImplementedError

    def snapshot(self, engine: sa.Engine) -> AbstractContextManager[sa.Connection]:
        """A read-only connection that sees the database as it is now."""
        raise NotImplementedError

    def never_idle(self, connection: sa.Connection) -> None:
        """Turn off the limit on idle time for this transaction."""

    def limit_lock_wait(self, connection: sa.Connection, limit_ms: int) -> None:
        """Limit the time that this transaction waits for a lock to ``limit_ms``."""

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """An insert statement with ``on_conflict_do_update``."""
        raise NotImplementedError

    def now(self) -> sa.ColumnElement[Any]:
        """The database's current time in UTC, in the form in which SQLAlchemy stores it."""
        raise NotImplementedError

    def is_transient(self, error: BaseException) -> bool:
        """Whether the same statement may succeed later; ``error`` is the driver's own."""
        raise NotImplementedError

    def remedy(self, error: BaseException) -> str | None:
        """What a person can do about the driver's ``error``; None if that is unknown."""
        raise NotImplementedError


class _Sqlite(Dialect):
    bytewise = "BINARY"
    _BUSY_S = 10
    # Another process holds the file, or was about to create its write-ahead log.
    _TRANSIENT: ClassVar = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
    _REMEDIES: ClassVar = {
        sqlite3.SQLITE_FULL: "free space on its disk",
        sqlite3.SQLITE_IOERR: "check its disk, and the limits on file sizes",
        sqlite3.SQLITE_READONLY: "make the file and its directory writable",
        sqlite3.SQLITE_CANTOPEN: "check that its directory exists and is writable",
        sqlite3.SQLITE_NOTADB: "name another file",
    }

    def engine_options(self, url: sa.URL) -> dict[str, Any]:
        return {"connect_args": {"timeout": self._BUSY_S}}

    def file(self, url: sa.URL) -> Path:
        if not url.database or url.query.get("mode") == "memory":
            return IN_MEMORY
        return Path(url.database.removeprefix("file:"))

    def to_read(self, url: sa.URL) -> sa.URL:
        file = self.file(url)
        if file == IN_MEMORY or Path(f"{file}-wal").exists() or os.access(file.parent, os.W_OK):
            return url
        # To read a database with a write-ahead log, SQLite has to write beside it, unless it is
        # told that nobody changes the file.
        database = f"file:{quote(str(file))}"
        return url.set(database=database).update_query_dict({"immutable": "1", "uri": "true"})

    def prepare(self, connection: sa.Connection) -> None:
        # With a write-ahead log, readers do not wait for a writer, nor a writer for readers.
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        version = connection.exec_driver_sql("PRAGMA user_version").scalar()
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        # Only a write tells that a file can't be written.
        connection.exec_driver_sql(f"PRAGMA user_version={version}")
        connection.exec_driver_sql("ROLLBACK")

    def tune(self, engine: sa.Engine) -> None:
        if not sa.event.contains(engine, "connect", _relax_sync):
            sa.event.listen(engine, "connect", _relax_sync)
            engine.dispose()  # close connections that were opened before the listener

    def table_lock(self, connection: sa.Connection) -> AbstractContextManager[object]:
        if not connection.engine.url.database:
            return nullcontext()
        # The lock file is not beside the database, to leave directories of studies tidy.
        path = str(Path(connection.engine.url.database).resolve())
        name = hashlib.sha256(path.encode()).hexdigest()[:16]
        return FileLock(Path(tempfile.gettempdir()) / f"hpo-{os.getuid()}-{name}.lock")

    @contextmanager
    def snapshot(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        # The driver begins no transaction for reads, so this one is begun explicitly.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("PRAGMA query_only=ON")
            connection.exec_driver_sql("BEGIN")
            yield connection

    def insert(self, table: sa.Table) -> sqlite.Insert:
        return sqlite.insert(table)

    def now(self) -> sa.ColumnElement[Any]:
        return sa.func.strftime("%Y-%m-%d %H:%M:%f000", "now", type_=sa.DateTime())

    def is_transient(self, error: BaseException) -> bool:
        return self._code(error) in self._TRANSIENT

    def remedy(self, error: BaseException) -> str | None:
        return self._REMEDIES.get(self._code(error))

    @staticmethod
    def _code(error: BaseException) -> int:
        # The low byte is the primary code; a lock may also be SQLITE_BUSY_SNAPSHOT, for example.
        return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _relax_sync(connection: Any, _record: object) -> None:
    # With a write-ahead log, a power cut can lose the last transactions, but never corrupts.
    connection.execute("PRAGMA synchronous=NORMAL")


_UTC = "-c timezone=UTC"  # heartbeats are compared with now() on any connection


class _PostgreSQL(Dialect):
    bytewise = "C"
    _TABLE_LOCK = 0x72756E6573  # the key of an advisory lock
    # One connection for the worker's statements and one for its heartbeat, and a spare.
    _POOL: ClassVar = {"pool_size": 2, "max_overflow": 1}
    _CONNECT_S = 10
    _SESSION: ClassVar = {
        # The server releases the locks of a machine that vanished, or of a process that was
        # halted, in the middle of a transaction. By default it keeps them for hours or for ever.
        "tcp_keepalives_idle": 15,  # s
        "tcp_keepalives_interval": 5,  # s
        "tcp_keepalives_count": 3,
        "tcp_user_timeout": 30_000,  # ms
        "idle_in_transaction_session_timeout": 120_000,  # ms
    }
    # A client notices in half a minute that its link was cut.
    _KEEPALIVES: ClassVar = {
        "keepalives_idle": 15,  # s
        "keepalives_interval": 5,  # s
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,  # ms
    }
    # Classes of appendix A of its manual: connection exception, transaction rollback, too many
    # connections, operator intervention (shutdown, crash, starting up), a transaction that was
    # ended because its process had been halted in it.
    _TRANSIENT = ("08", "40", "53300", "57P", "25P03")
    _REMEDIES: ClassVar = {
        "28": "check user and password",
        "3D": "create that database, or name another",
        "42501": "grant the user its rights",
        "53100": "free space on the server's disk",
        "25006": "connect to the primary, which takes writes",
    }
    # Messages of errors without a class, which the driver raises when there is no connection.
    _CONNECTION_ERRORS = ("OperationalError", "InterfaceError")
    # A refused connection has no class: parts of its message, and what to do about it.
    _REFUSALS: ClassVar = {
        "no encryption": "the server wants TLS: add ?sslmode=verify-full and sslrootcert to the "
        "URL",
        "certificate": "check sslrootcert and the name of the server in the URL",
        "password": "check user and password",
        "no pg_hba.conf entry": "check user and password",
        "is not permitted to log in": "check user and password",
        "permission denied for database": "grant the user CONNECT on that database",
        "does not exist": "create that database, or name another",
        "does not support SSL": "set up TLS on the server, or leave sslmode out of the URL",
        "invalid sslmode value": "write sslmode=verify-full, or leave it out",
    }

    def engine_options(self, url: sa.URL) -> dict[str, Any]:
        # As libpq does: what the URL says counts, else the environment. A later option of a name
        # beats an earlier one, and that all moments are in UTC is not to be chosen.
        own = [f"-c {name}={value}" for name, value in self._SESSION.items()]
        given = url.query.get("options", os.environ.get("PGOPTIONS", ""))
        session = " ".join([*own, *([given] if isinstance(given, str) else given), _UTC])
        return {
            "pool_pre_ping": True,
            **self._POOL,
            "connect_args": {
                **self._prepare_threshold(url),
                "connect_timeout": self._CONNECT_S,
                "options": session,
                **self._KEEPALIVES,
            },
        }

    @staticmethod
    def _prepare_threshold(url: sa.URL) -> dict[str, int | None]:
        """After how many runs a statement is prepared, if the URL says so; None: never.

        Older transaction poolers do not track which connection has prepared which statement.
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
    def table_lock(self, connection: sa.Connection) -> Iterator[None]:
        # The transaction holds the lock, however this process ends. Behind a pooler the session
        # is not ours.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(self._TABLE_LOCK)))
        yield

    @contextmanager
    def snapshot(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with engine.connect().execution_options(**options) as connection:
            self.never_idle(connection)
            yield connection

    def never_idle(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")

    def limit_lock_wait(self, connection: sa.Connection, limit_ms: int) -> None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {limit_ms}")

    def insert(self, table: sa.Table) -> postgresql.Insert:
        return postgresql.insert(table)

    def now(self) -> sa.ColumnElement[Any]:
        return sa.func.now()

    def is_transient(self, error: BaseException) -> bool:
        state = getattr(error, "sqlstate", None)
        if state is not None:
            return str(state).startswith(self._TRANSIENT)
        # Without a state there is no connection: the server gave no answer, or it refused.
        return type(error).__name__ in self._CONNECTION_ERRORS and self._refusal(error) is None

    def remedy(self, error: BaseException) -> str | None:
        state = str(getattr(error, "sqlstate", None) or "")
        if state:
            known = self._REMEDIES.items()
            return next((remedy for code, remedy in known if state.startswith(code)), None)
        if type(error).__name__ in self._CONNECTION_ERRORS:
            return self._refusal(error) or "check host and port, and that the server runs"
        return None

    def _refusal(self, error: BaseException) -> str | None:
        return next((r for words, r in self._REFUSALS.items() if words in str(error)), None)


SQLITE = _Sqlite()
POSTGRESQL = _PostgreSQL()


def dialect_of(place: sa.URL | sa.Engine | sa.Connection) -> Dialect:
    """The dialect of a database."""
    name = place.get_backend_name() if isinstance(place, sa.URL) else place.dialect.name
    return SQLITE if name == "sqlite" else POSTGRESQL


def dialect_of_error(error: BaseException) -> Dialect:
    """The dialect whose driver raised ``error``."""
    return SQLITE if isinstance(error, sqlite3.Error) else POSTGRESQL
