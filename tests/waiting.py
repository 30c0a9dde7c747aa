"""How tests wait for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(what: Callable[[], object], timeout_s: float = 300.0, every_s: float = 0.05) -> None:
    """Return once ``what()`` is true; the limit is for machines that are busy."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(every_s)
