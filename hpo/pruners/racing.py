"""Racing: a pruner that drops a trial as soon as a paired test says that it is worse.

Usable with any Optuna study whose trials meet the same instances in the same order and report
after the i-th one, under step i, the mean of their losses so far (or that loss alone).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from ..trial.ranking import NewlyComplete
from .statistics import Standings, Verdict


class Race:
    """What a study's complete trials say, kept up as they finish.

    Args:
        running_means: reports are means of the losses so far; else they are the losses.
    """

    def __init__(self, running_means: bool = True) -> None:
        self._running_means = running_means
        self._newly_complete = NewlyComplete()
        self._rows: list[list[float]] = []  # losses of a trial each
        self._standings: Standings | None = None

    def losses(self, trial: FrozenTrial) -> list[float] | None:
        """Losses on the first instances; None if steps are left out or a loss is not positive."""
        reports = [trial.intermediate_values.get(i + 1) for i in range(trial.last_step or 0)]
        values = np.asarray([np.nan if r is None else r for r in reports], dtype=np.float64)
        if self._running_means:
            totals = values * np.arange(1, len(values) + 1)
            values = np.diff(totals, prepend=0.0)
        good = len(values) > 0 and bool((np.isfinite(values) & (values > 0)).all())
        return [float(v) for v in values] if good else None

    def standings(self, study: optuna.Study) -> Standings | None:
        """Of the complete, feasible trials that met the most instances; None without any."""
        rows = [self.losses(trial) for trial in self._newly_complete.of(study)]
        if new := [row for row in rows if row is not None]:
            self._rows += new
            self._standings = _standings(self._rows)
        return self._standings


def _standings(rows: Sequence[list[float]]) -> Standings | None:
    n_instances = max(map(len, rows), default=0)
    whole = [row for row in rows if len(row) == n_instances]
    return Standings(np.array(whole)) if whole else None


class RacingPruner(optuna.pruners.BasePruner):
    """Drops trials that are worse than the incumbent, the complete trial of lowest loss.

    A recipe that is as good as the incumbent is dropped with probability at most ``alpha``, all
    looks of the trial together; `hpo.pruners.statistics.Standings.judge` says how and under which
    model.

    Args:
        alpha: that probability, in (0, 1).
        running_means: as of `Race`.

    Raises:
        ValueError: ``alpha`` is not in (0, 1).
    """

    def __init__(self, alpha: float = 0.4, running_means: bool = True) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is {alpha}; write a number between 0 and 1")
        self._alpha = alpha
        self._race = Race(running_means)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial's reports show it to be worse.

        Raises:
            ValueError: the study maximises.
        """
        verdict = self.verdict(study, trial)
        return verdict is not None and verdict.drop

    def verdict(self, study: optuna.Study, trial: FrozenTrial) -> Verdict | None:
        """The comparison behind `prune`; None where there is nothing to compare."""
        if study.direction != StudyDirection.MINIMIZE:
            raise ValueError("racing compares losses: the study must minimise")
        losses, standings = self._race.losses(trial), self._race.standings(study)
        if losses is None or standings is None or len(losses) >= standings.n_instances:
            return None
        return self.judge(standings, losses)

    def judge(self, standings: Standings, losses: Sequence[float]) -> Verdict:
        """The verdict on a candidate's losses so far, at this pruner's level."""
        return standings.judge(losses, self._alpha)
