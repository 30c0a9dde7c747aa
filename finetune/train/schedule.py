"""How far a run's schedule has come, by steps or by time."""

from __future__ import annotations

import time

# Until this share of the deadline steps alone count: the slow first ones would say too much.
_CLOCK_GRACE = 0.1
# A step may take this much longer than the slowest so far without passing the deadline.
_STEP_MARGIN = 1.5


class Clock:
    """The share of the schedule that is done, by steps or by time, whichever is further.

    Args:
        start: when the call began, by `time.perf_counter`.
    """

    def __init__(self, start: float, n_steps: int, deadline_s: float) -> None:
        self._start = start
        self._n_steps = n_steps
        self._deadline_s = deadline_s
        self._last = self.elapsed_s
        self._slowest_step_s = 0.0
        self.step = 0
        self.share = 0.0

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._start

    @property
    def is_over(self) -> bool:
        """Whether no step is left: the schedule is done, or one step outlasted its time."""
        return self.share >= 1 or self.elapsed_s >= self._deadline_s

    def tick(self) -> float:
        """One more step begins to update the weights; returns the share that it covers."""
        now = self.elapsed_s
        self._slowest_step_s = max(self._slowest_step_s, now - self._last)
        self._last = now
        self.step += 1
        # The step after this one must end in time too, or this one is the last.
        usable_s = self._deadline_s - _STEP_MARGIN * self._slowest_step_s
        elapsed = now / usable_s if usable_s > 0 else 1.0
        by_time = (elapsed - _CLOCK_GRACE) / (1 - _CLOCK_GRACE)
        before = self.share
        self.share = min(1.0, max(self.share, self.step / self._n_steps, by_time))
        return self.share - before
