"""Learning curves: the training loss in equal parts of a call."""

from __future__ import annotations

import math

N_PARTS = 16
_DIGITS = 4  # significant digits to store; the noise is larger than the rest


class LearningCurve:
    """Collects the losses of a call's batches."""

    def __init__(self) -> None:
        self._sums = [0.0] * N_PARTS
        self._counts = [0] * N_PARTS

    def add(self, share: float, loss: float) -> None:
        """Add the loss of the step that ended at ``share`` of the schedule, in (0, 1]."""
        part = min(max(math.ceil(share * N_PARTS) - 1, 0), N_PARTS - 1)
        self._sums[part] += loss
        self._counts[part] += 1

    def means(self) -> tuple[float, ...]:
        """Mean loss of each of `N_PARTS` parts; a part without a step repeats the one before it.

        Empty before the first step.
        """
        curve: list[float] = []
        for total, count in zip(self._sums, self._counts, strict=True):
            if count:
                curve.append(float(f"{total / count:.{_DIGITS}g}"))
            elif curve:
                curve.append(curve[-1])
        return tuple(curve)
