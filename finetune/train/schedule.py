"""The schedule's clock: the finished share of a run, by steps or by time."""

from __future__ import annotations

import time

# Until this share of the deadline only steps count, because the first ones are slow.
_CLOCK_GRACE = 0.1
# The next step may be slower than the slowest so far by this factor.
_STEP_MARGIN = 1.5


class Clock:
    """The finished share of the schedule, by steps or by time, whichever is larger.

    Args:
        start: start of the call, by `time.perf_counter`.
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
        """Whether no step is left: the schedule is done, or a step took too long."""
        return self.share >= 1 or self.elapsed_s >= self._deadline_s

    def tick(self) -> float:
        """Begin another step; returns the share of the schedule that it covers."""
        now = self.elapsed_s
        self._slowest_step_s = max(self._slowest_step_s, now - self._last)
        self._last = now
        self.step += 1
        # If the step after this one might not end in time, this one is the last.
        usable_s = self._deadline_s - _STEP_MARGIN * self._slowest_step_s
        elapsed = now / usable_s if usable_s > 0 else 1.0
        by_time = (elapsed - _CLOCK_GRACE) / (1 - _CLOCK_GRACE)
        before = self.share
        self.share = min(1.0, max(self.share, self.step / self._n_steps, by_time))
        return self.share - before
