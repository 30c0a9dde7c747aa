"""Errors of databases: which of them may pass, and what a person can do about the others."""

from __future__ import annotations

import optuna
import sqlalchemy.exc

from ..errors import UserError
from .dialects import dialect_of_error


class TrialTakenError(optuna.exceptions.UpdateFinishedTrialError):
    """The trial does not belong to this worker any more: it was ended, or given to another."""


class StudyGoneError(UserError):
    """The study that this process works on was deleted, or its database's file is another."""


def is_database_error(error: BaseException) -> bool:
    """Whether the database is at fault, and neither this code nor the data."""
    return is_transient(error) or _remedy(error) is not None


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed later: a lock, a restart, a cut connection."""
    if isinstance(error, sqlalchemy.exc.TimeoutError):  # no connection was free
        return True
    cause = _cause(error)
    return dialect_of_error(cause).is_transient(cause)


def driver_message(error: BaseException) -> str:
    """What the driver says, in one line."""
    cause = _cause(error)
    # libpq tries each address of a host and repeats itself; the first line is enough.
    return " ".join((str(cause).strip() or type(cause).__name__).split("\n- ")[0].split())[:240]


def explain(error: BaseException) -> str:
    """What the driver says, in one line, and what to do about it where that is known."""
    remedy = _remedy(error)
    return f"{driver_message(error)}; {remedy}" if remedy else driver_message(error)


def _remedy(error: BaseException) -> str | None:
    cause = _cause(error)
    return dialect_of_error(cause).remedy(cause)


def _cause(error: BaseException) -> BaseException:
    """The driver's own error under Optuna's and SQLAlchemy's."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None:
        error = error.orig
    return error
