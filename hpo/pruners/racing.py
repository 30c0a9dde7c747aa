"""Racing: a pruner that drops a trial as soon as a paired test says that it is worse.

It can be used in any Optuna study whose trials meet the same instances in the same order, and
report at step i the mean of their losses so far (or the loss on instance i alone).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ..trial.ranking import is_feasible
from .looks import LookStandings
from .statistics import Standings, Verdict

LOOKS_KEY = "looks"  # user attribute of a trial: how many of its first instances are looks
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class Race:
    """Statistics of a study's finished trials, updated as trials finish.

    In a study without looks only complete trials count.

    Args:
        running_means: whether trials report the mean of their losses so far, or each loss alone.
    """

    def __init__(self, running_means: bool = True) -> None:
        self._running_means = running_means
        self.forget()

    def forget(self) -> None:
        """Drop what is cached of the trials, because one of them has changed."""
        self._seen: set[int] = set()
        self._whole: list[list[float]] = []  # losses of each complete trial
        self._partial: list[list[float]] = []  # losses of each pruned trial
        self.n_looks = 0  # number of looks, as told by the trials seen so far
        self._standings: Standings | LookStandings | None = None

    def losses(self, trial: FrozenTrial) -> list[float] | None:
        """Losses on the first instances; None if steps are left out or a loss is not positive."""
        reports = [trial.intermediate_values.get(i + 1) for i in range(trial.last_step or 0)]
        values = np.asarray([np.nan if r is None else r for r in reports], dtype=np.float64)
        if self._running_means:
            totals = values * np.arange(1, len(values) + 1)
            values = np.diff(totals, prepend=0.0)
        good = len(values) > 0 and bool((np.isfinite(values) & (values > 0)).all())
        return [float(v) for v in values] if good else None

    def standings(self, study: optuna.Study) -> Standings | LookStandings | None:
        """Statistics of a study's feasible trials; see `of`."""
        return self.of(study.get_trials(deepcopy=False, states=_ENDED))

    def of(self, trials: Sequence[FrozenTrial]) -> Standings | LookStandings | None:
        """Statistics of the feasible trials; None if there is none to compare with."""
        is_new = False
        for trial in trials:
            if trial.number in self._seen or trial.state not in _ENDED:
                continue
            self._seen.add(trial.number)
            losses = self.losses(trial) if is_feasible(trial) else None
            if losses is None:
                continue
            self.n_looks = max(self.n_looks, n_looks_of(trial.user_attrs))
            complete = trial.state == TrialState.COMPLETE
            (self._whole if complete else self._partial).append(losses)
            is_new = True
        if is_new:
            self._standings = self._made()
        return self._standings

    def _made(self) -> Standings | LookStandings | None:
        n_instances = max(map(len, self._whole), default=0)
        whole = [row for row in self._whole if len(row) == n_instances]
        if not self.n_looks:
            return Standings(np.array(whole)) if whole else None
        looked = [row for row in self._partial if len(row) >= self.n_looks]
        if not whole and not looked:
            return None
        return LookStandings(whole, self._partial, self.n_looks)


def n_looks_of(attrs: Mapping[str, object] = MappingProxyType({})) -> int:
    """How many of a trial's first instances are looks, by its user attributes."""
    found = attrs.get(LOOKS_KEY)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


class RacingPruner(optuna.pruners.BasePruner):
    """Drops trials that are worse than the incumbent, the complete trial of lowest loss.

    A recipe that is as good as the incumbent is dropped with probability at most ``alpha``, all
    looks of the trial together; `hpo.pruners.statistics.Standings.judge` says how and under which
    model, and `hpo.pruners.looks.LookStandings.judge` where the first instances are looks at a
    lower speed.

    Args:
        alpha: that probability, in (0, 1).
        running_means: as in `Race`.

    Raises:
        ValueError: ``alpha`` is not in (0, 1).
    """

    def __init__(self, alpha: float = 0.4, running_means: bool = True) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is {alpha}; write a number between 0 and 1")
        self._alpha = alpha
        self._race = Race(running_means)

    def forget(self) -> None:
        """Drop what is cached of the trials, because one of them has changed."""
        self._race.forget()

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

    def judge(self, standings: Standings | LookStandings, losses: Sequence[float]) -> Verdict:
        """The verdict on a candidate's losses so far, at this pruner's level."""
        return standings.judge(losses, self._alpha)
