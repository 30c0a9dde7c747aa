"""SIGTERM and SIGINT end a process properly; a second one ends it at once."""

from __future__ import annotations

import os
import signal
from types import FrameType

from finetune.errors import EXIT_INTERRUPTED


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
        if stopping:
            os._exit(128 + number)
        stopping = True
        raise StopError(number)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
