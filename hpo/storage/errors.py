"""Errors of databases: which of them pass, and what to do about the others."""

from __future__ import annotations

import sqlite3

import optuna
import sqlalchemy.exc

# Another process holds the file, or was about to start its log.
_SQLITE_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
# PostgreSQL's classes (appendix A of its manual): connection exception, transaction rollback,
# too many connections, operator intervention (shutdown, crash, starting up), a transaction that
# was ended because its process had been halted in it.
_POSTGRES_PASSING = ("08", "40", "53300", "57P", "25P03")
_SQLITE_REMEDY = {
    sqlite3.SQLITE_FULL: "free space on its disk",
    sqlite3.SQLITE_IOERR: "check its disk, and the limits on file sizes",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable",
    sqlite3.SQLITE_CANTOPEN: "check that its directory exists and is writable",
    sqlite3.SQLITE_NOTADB: "name another file",
}
_POSTGRES_REMEDY = {
    "28": "check user and password",
    "3D": "create that database, or name another",
    "42501": "grant the user its rights",
    "53100": "free space on the server's disk",
    "25006": "connect to the primary, which takes writes",
}
# Of a connection that is refused, which comes without a class: words, and what to do about it.
_REFUSALS = {
    "no encryption": "the server wants TLS: add ?sslmode=verify-full and sslrootcert to the URL",
    "certificate": "check sslrootcert and the name of the server in the URL",
    "password": "check user and password",
    "no pg_hba.conf entry": "check user and password",
    "is not permitted to log in": "check user and password",
    "permission denied for database": "grant the user CONNECT on that database",
    "does not exist": "create that database, or name another",
    "does not support SSL": "set up TLS on the server, or leave sslmode out of the URL",
    "invalid sslmode value": "write sslmode=verify-full, or leave it out",
}


def cause_of(error: BaseException) -> BaseException:
    """The driver's own error under Optuna's and SQLAlchemy's."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None:
        error = error.orig
    return error


def is_passing(error: BaseException) -> bool:
    """Whether the same statement may succeed later: a lock, a restart, a cut connection."""
    if isinstance(cause := cause_of(error), sqlite3.Error):
        return _sqlite_code(cause) in _SQLITE_PASSING
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return True
    state = getattr(cause, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_POSTGRES_PASSING)
    # Without a state there is no connection: the server gave no answer, or it refused.
    if type(cause).__name__ not in ("OperationalError", "InterfaceError"):
        return False
    return not any(words in str(cause) for words in _REFUSALS)


def is_database_trouble(error: BaseException) -> bool:
    """Whether the database, and neither this code nor the data, is at fault."""
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return True
    if isinstance(cause := cause_of(error), sqlite3.Error):
        return _sqlite_code(cause) in _SQLITE_PASSING or _sqlite_code(cause) in _SQLITE_REMEDY
    if getattr(cause, "sqlstate", None) is not None:
        return is_passing(error) or _remedy(cause) is not None
    return type(cause).__name__ in ("OperationalError", "InterfaceError")


def words_of(error: BaseException) -> str:
    """The driver's words in one line."""
    cause = cause_of(error)
    # libpq tries each address of a host and repeats itself; the first says it.
    return " ".join((str(cause).strip() or type(cause).__name__).split("\n- ")[0].split())[:240]


def explain(error: BaseException) -> str:
    """The driver's words in one line, and what to do about it where that is known."""
    remedy = _remedy(cause_of(error))
    return f"{words_of(error)}; {remedy}" if remedy else words_of(error)


def _remedy(cause: BaseException) -> str | None:
    if isinstance(cause, sqlite3.Error):
        return _SQLITE_REMEDY.get(_sqlite_code(cause))
    state = str(getattr(cause, "sqlstate", None) or "")
    if state:
        return next((r for s, r in _POSTGRES_REMEDY.items() if state.startswith(s)), None)
    if type(cause).__name__ == "OperationalError":
        away = "check host and port, and that the server runs"
        return next((r for words, r in _REFUSALS.items() if words in str(cause)), away)
    return None


def _sqlite_code(error: sqlite3.Error) -> int:
    # The low byte is the primary code; a lock may come as SQLITE_BUSY_SNAPSHOT, say.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
