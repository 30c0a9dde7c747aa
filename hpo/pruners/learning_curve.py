"""Learning curves: the training loss in equal parts of a run, and runs that are beyond hope."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import optuna

from ..trial.ranking import NewlyComplete

N_PARTS = 16
_DIGITS = 4  # that are kept, of a number whose noise is larger
_FIRST_PART = N_PARTS // 4  # before it, curves say little about where they end
_MIN_KNOWN = 5  # curves, before anything is compared with them


class LearningCurve:
    """Collects the losses of a run's batches."""

    def __init__(self) -> None:
        self._sums = [0.0] * N_PARTS
        self._counts = [0] * N_PARTS
        self._part = 0
        self._has_grown = False  # by a whole part, with the last loss

    def add(self, share: float, loss: float) -> None:
        """The loss of the step that ended at ``share`` of the schedule, in (0, 1]."""
        part = min(max(math.ceil(share * N_PARTS) - 1, 0), N_PARTS - 1)
        self._has_grown = part > self._part
        self._part = part
        self._sums[part] += loss
        self._counts[part] += 1

    def means(self) -> tuple[float, ...]:
        """Mean loss of each of `N_PARTS` parts; one without a step has the value before it.

        Empty before the first step.
        """
        curve: list[float] = []
        for total, count in zip(self._sums, self._counts, strict=True):
            if count:
                curve.append(float(f"{total / count:.{_DIGITS}g}"))
            elif curve:
                curve.append(curve[-1])
        return tuple(curve)

    def is_hopeless(self, known: Sequence[Sequence[float]]) -> bool:
        """Whether the run has no prospect, by the curves of complete trials on its instance.

        Asked when a part is whole: its loss must be above the highest known one by more than the
        known ones differ.  Recipes that train on harder drawings have higher curves and may end
        lower, so only what is far out counts: runs that diverge, or do not learn at all.
        """
        part = self._part - 1
        if not self._has_grown or part < _FIRST_PART or len(known) < _MIN_KNOWN:
            return False
        losses = [curve[part] for curve in known]
        highest = max(losses)
        return self.means()[part] > highest + (highest - min(losses))


class KnownCurves:
    """The curves of a study's complete trials, read once each."""

    def __init__(self) -> None:
        self._newly_complete = NewlyComplete()
        self._curves: dict[str, list[Sequence[float]]] = defaultdict(list)

    def on(self, study: optuna.Study, instance: str) -> list[Sequence[float]]:
        """Those on one instance, by its label."""
        for trial in self._newly_complete.of(study):
            for measured in trial.user_attrs.get("instances", ()):
                if len(measured.get("curve", ())) == N_PARTS:
                    self._curves[measured["instance"]].append(measured["curve"])
        return self._curves[instance]
