"""Compare the speeds of workers, for studies whose calls end by wall clock."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..trial.run import Run

_LARGE = 1.5  # a ratio of speeds from this on is reported


def other_speed(runs: Sequence[Run], mine: float | None) -> str | None:
    """A warning if this worker is much faster or slower than the workers so far; else None.

    Args:
        runs: trials of the study.
        mine: this worker's training steps a second, as in a trial's `Machine`; None: unknown.
    """
    theirs = [
        run.record.machine.speed
        for run in runs
        if run.calls and run.record.machine is not None and run.record.machine.speed
    ]
    if mine is None or not theirs:
        return None
    ratio = mine / statistics.median(theirs)
    if 1 / _LARGE <= ratio <= _LARGE:
        return None
    return (
        f"this worker trains {ratio:.2g} times as fast as those that measured so far, and calls of "
        "the file end by wall clock: losses of the two can't be compared where it looks at "
        "the time; use machines of one kind, or give the study another name"
    )
