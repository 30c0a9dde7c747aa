"""Errors of databases: which of them are transient, and what a person can do about the others."""

from __future__ import annotations

import optuna
import sqlalchemy.exc

from ..errors import UserError
from .dialects import dialect_of_error


class TrialTakenError(optuna.exceptions.UpdateFinishedTrialError):
    """The trial no longer belongs to this worker: it was ended, or another worker has it."""


class StudyGoneError(UserError):
    """The study that this process works on was deleted, or its database's file was replaced."""


def is_database_error(error: BaseException) -> bool:
    """Whether the database caused the error, and not our code or the data."""
    return is_transient(error) or _remedy(error) is not None


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed later: a lock, a restart, a cut connection."""
    if isinstance(error, sqlalchemy.exc.TimeoutError):  # of the pool: no connection was free
        return True
    cause = _cause(error)
    return dialect_of_error(cause).is_transient(cause)


def driver_message(error: BaseException) -> str:
    """The driver's message, in one line."""
    cause = _cause(error)
    # libpq tries each address of a host and repeats itself; the first line is enough.
    return " ".join((str(cause).strip() or type(cause).__name__).split("\n- ")[0].split())[:240]


def explain(error: BaseException) -> str:
    """The driver's message, in one line, with the remedy if one is known."""
    remedy = _remedy(error)
    return f"{driver_message(error)}; {remedy}" if remedy else driver_message(error)


def _remedy(error: BaseException) -> str | None:
    cause = _cause(error)
    return dialect_of_error(cause).remedy(cause)


def _cause(error: BaseException) -> BaseException:
    """The driver's own error, which Optuna's and SQLAlchemy's errors wrap."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None:
        error = error.orig
    return error
