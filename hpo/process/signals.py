"""Signals that stop a process cleanly: the first one raises `StopError`.

They are SIGTERM, SIGINT, SIGUSR1 and SIGHUP.  A closed terminal sends SIGHUP; nohup makes the
process ignore it.  Batch systems send SIGUSR1 before they take a machine away.  A second SIGTERM or
SIGINT ends the process at once, a second SIGUSR1 does not.  So a parent sends SIGUSR1 to children
that may have received the parent's own signal as well.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from ..errors import EXIT_INTERRUPTED

_pending: StopError | None = None  # raised by a signal and not acknowledged yet


class StopError(KeyboardInterrupt):
    """The process was asked to stop: it releases its running trial and exits."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """0 for signals that schedulers send on purpose; 130 for SIGINT, as shells expect."""
        return EXIT_INTERRUPTED if self.number == signal.SIGINT else 0


def raise_on_signals() -> None:
    """Turn the first of the signals into a `StopError` in the main thread."""
    stopping, next_ends = False, False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping, next_ends
        global _pending
        only_asks = number in (signal.SIGUSR1, signal.SIGHUP)
        if next_ends and not only_asks:
            os._exit(128 + number)
        next_ends = next_ends or not only_asks
        if not stopping:
            stopping = True
            _pending = StopError(number)
            raise _pending

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, StopError):
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


def raise_if_stopped() -> None:
    """Raise a `StopError` again that Python dropped, if there is one.  Long work calls this often.

    A signal may arrive while Python runs a destructor, and exceptions in destructors are dropped.

    Raises:
        StopError: the process was asked to stop, and `acknowledge_stop` was not called since.
    """
    if _pending is not None:
        raise _pending


def acknowledge_stop() -> None:
    """Stop `raise_if_stopped` from raising: the process is stopping."""
    global _pending
    _pending = None
