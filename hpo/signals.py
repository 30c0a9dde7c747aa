"""SIGTERM and SIGINT end a process properly; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from finetune.errors import EXIT_INTERRUPTED

_pending: StopError | None = None  # asked for, and not yet acted upon


class StopError(KeyboardInterrupt):
    """The process was asked to stop: hand back what is at hand and go."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """0 for SIGTERM, which a scheduler sends on purpose; 130 for SIGINT, as shells expect."""
        return 0 if self.number == signal.SIGTERM else EXIT_INTERRUPTED


def raise_on_signals() -> None:
    """Turn the first SIGTERM or SIGINT into a `StopError` in the main thread."""
    stopping = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        global _pending
        if stopping:
            os._exit(128 + number)
        stopping = True
        _pending = StopError(number)
        raise _pending

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, StopError):
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report
    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


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
