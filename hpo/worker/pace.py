"""Compare this machine's speed with that of the study's reference machine."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..clock.plan import Plan
from ..process.logging import info

_CALLS = 3  # calls to wait for, as the first one of a process is slow
_LARGE = 1.5  # a ratio of speeds from this on is logged


class Pace:
    """Logs once, after a few calls, if this machine is much slower or faster."""

    def __init__(self) -> None:
        self._ratios: list[float] = []

    def add(self, plans: Sequence[Plan], seconds: Sequence[float], machine: str) -> None:
        """Add calls that were made in so many seconds here.

        Args:
            machine: the reference machine's name.
        """
        if len(self._ratios) >= _CALLS:
            return
        ratios = [s / p.full_speed_s for p, s in zip(plans, seconds, strict=True) if p.seconds > 0]
        self._ratios += ratios
        if len(self._ratios) < _CALLS:
            return
        ratio = statistics.median(self._ratios)
        if not 1 / _LARGE <= ratio <= _LARGE:
            info(
                f"calls take {ratio:.2g} times as long here as on the reference machine {machine}; "
                "losses do not depend on that"
            )
