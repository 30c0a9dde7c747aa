"""Trying again while a database is away."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import optuna
import sqlalchemy.exc

from ..errors import UserError
from ..process.logging import warn
from ..process.signals import raise_if_stopped
from .errors import explain, is_database_trouble, is_passing, words_of

T = TypeVar("T")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_QUIET_S = 1.0  # shorter troubles are not worth a line


class Patience:
    """Repeats an operation until it succeeds, with growing pauses that the user is told of.

    Args:
        what: the database's name, as it may be shown.
        limit_s: of one trouble; after it the worker gives up.
    """

    def __init__(self, what: str, limit_s: float) -> None:
        self.what = what
        self.limit_s = limit_s

    def call(self, operation: Callable[[], T]) -> T:
        """The operation's result; it must be safe to repeat, even if it did succeed unseen.

        Raises:
            UserError: a trouble that does not pass, or one that lasted for ``limit_s``.
        """
        started = time.monotonic()
        pause_s, told = _FIRST_PAUSE_S, False
        while True:
            try:
                result = operation()
            except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as e:
                if not is_database_trouble(e):
                    raise
                waited_s = time.monotonic() - started
                if not is_passing(e):
                    raise UserError(f"{self.what}: {explain(e)}") from e
                if waited_s > self.limit_s:
                    raise UserError(
                        f"{self.what}: {explain(e)}; gave up after {waited_s:.0f} s"
                    ) from e
                if waited_s >= _QUIET_S or pause_s >= _QUIET_S:
                    warn(f"{self.what}: {words_of(e)}; trying again in {pause_s:.1f} s")
                    told = True
                raise_if_stopped()
                # Spread out, so that many workers do not come back in the same instant.
                time.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                if told:
                    warn(f"{self.what}: answers again after {time.monotonic() - started:.0f} s")
                return result
