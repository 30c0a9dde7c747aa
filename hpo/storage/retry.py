"""Retry operations while a database is away."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import optuna
import sqlalchemy.exc
import tenacity

from ..errors import DatabaseAwayError, UserError
from ..process.logging import warn
from ..process.signals import raise_if_stopped
from .errors import driver_message, explain, is_database_error, is_transient

T = TypeVar("T")

_QUIET_S = 1.0  # shorter outages are not logged
_PAUSE = tenacity.wait_exponential(multiplier=0.1, max=10.0)  # s


class Retry:
    """Repeats an operation until it succeeds.

    The pauses grow to ten seconds. Once an outage lasts, each pause is logged, and so is the end
    of the outage.

    Args:
        name: the database's name without passwords.
        limit_s: longest outage to wait for.
    """

    def __init__(self, name: str, limit_s: float) -> None:
        self.name = name
        self.limit_s = limit_s

    def call(self, operation: Callable[[], T]) -> T:
        """Run an operation that may safely be repeated, even after an unseen success.

        Raises:
            DatabaseAwayError: the outage lasted for ``limit_s``.
            UserError: the error is not transient.
            StopError: the process was asked to stop.
        """
        started = time.monotonic()
        has_warned = False

        def tell(state: tenacity.RetryCallState) -> None:
            nonlocal has_warned
            error = state.outcome.exception() if state.outcome else None
            pause_s = state.upcoming_sleep
            if error and max(pause_s, time.monotonic() - started) >= _QUIET_S:
                warn(f"{self.name}: {driver_message(error)}; trying again in {pause_s:.1f} s")
                has_warned = True

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=tenacity.stop_after_delay(self.limit_s),
            # Spread out, so that many workers do not come back at the same moment.
            wait=lambda state: _PAUSE(state) * random.uniform(0.5, 1.0),
            sleep=_pause,
            before_sleep=tell,
            reraise=True,
        )
        try:
            result = retrying(operation)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if not is_database_error(error):
                raise
            message = f"{self.name}: {explain(error)}"
            if is_transient(error):
                message += f"; gave up after {time.monotonic() - started:.0f} s"
                raise DatabaseAwayError(message) from error
            raise UserError(message) from error
        if has_warned:
            warn(f"{self.name}: answers again after {time.monotonic() - started:.0f} s")
        return result


def _may_pass(error: BaseException) -> bool:
    kinds = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
    return isinstance(error, kinds) and is_transient(error)


def _pause(seconds: float) -> None:
    raise_if_stopped()
    time.sleep(seconds)
