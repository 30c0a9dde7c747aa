"""Steps of runs side by side, one operation after the other."""

from __future__ import annotations

from collections.abc import Sequence

from .batches import Batch
from .run import Run


class Steps:
    """Draws for ``runs`` and trains them, each of them one step at a time."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._drawn: list[Batch] = []  # of each run
        self._left = 0  # batches of these that no step has had

    def draw(self) -> None:
        """See that the next step has something to learn from."""
        if not self._left:
            self._drawn = [run.draw() for run in self._runs]
            self._left = len(self._drawn[0].x)

    def train(self, share: float, advance: float) -> list[float]:
        """A step at ``share`` of the schedule that covers ``advance``; each run's flow loss."""
        losses = []
        for run, drawn in zip(self._runs, self._drawn, strict=True):
            run.weights.set_rates(share, advance)
            losses.append(run.train(Batch(*(part[-self._left] for part in drawn))))
        self._left -= 1
        return [loss.item() for loss in losses]
