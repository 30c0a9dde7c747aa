"""SIGTERM, SIGINT and SIGUSR1 end a process properly; a second SIGTERM or SIGINT ends it at once.

SIGUSR1 is what batch systems send before they take a machine away.  It only ever asks: whoever
passes on a signal that may have come to the process as well sends SIGUSR1.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from ..errors import EXIT_INTERRUPTED

_pending: StopError | None = None  # asked for, and not yet acted upon


class StopError(KeyboardInterrupt):
    """The process was asked to stop: hand back what is at hand and go."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """0 for what a scheduler sends on purpose; 130 for SIGINT, as shells expect."""
        return EXIT_INTERRUPTED if self.number == signal.SIGINT else 0


def raise_on_signals() -> None:
    """Turn the first SIGTERM, SIGINT or SIGUSR1 into a `StopError` in the main thread."""
    stopping, told = False, False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping, told
        global _pending
        if told and number != signal.SIGUSR1:
            os._exit(128 + number)
        told = told or number != signal.SIGUSR1
        if not stopping:
            stopping = True
            _pending = StopError(number)
            raise _pending

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, StopError):
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, handle)


def raise_if_stopped() -> None:
    """To be called often: a signal may come while Python cleans up an object, and Python drops
    what is raised there.

    Raises:
        StopError: the process was asked to stop, and nobody has acted upon it.
    """
    if _pending is not None:
        raise _pending


def acknowledge_stop() -> None:
    """The process acts upon the signal from now on."""
    global _pending
    _pending = None
