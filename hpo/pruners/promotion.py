"""Promotion: which recipes go on from looks to the target speed, and when.

A trial that has made all its looks waits.  Workers look at new recipes until the best waiting one
is due.  Its calls at the target speed are then a trial of their own, which reads the looks from
the table of calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..problem.base import Instance, count_looks
from ..storage.transactions import FIXED_PARAMS_KEY
from ..trial.ranking import is_feasible
from .looks import LookStandings
from .racing import Race, RacingPruner

RECIPE_KEY = "recipe"  # user attribute of a trial: a digest of its recipe
_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True)
class Spent:
    """Compute spent on looks and at the target, in units of one call at the target speed."""

    looks: float
    target: float


class Promotion:
    """Chooses the waiting recipe with the best prediction, unless the race would drop it.

    Compute is divided between looks and calls at the target speed.  A recipe is promoted as soon
    as all its calls at the target speed fit into their share.

    Args:
        pruner: its test decides whether a waiting recipe is dropped.
        n_looks: number of looks; they are the first instances.
        n_instances: number of all instances.
        look_cost: cost of a look, in calls at the target speed.
        share: share of the compute for calls at the target speed.
    """

    def __init__(
        self,
        pruner: RacingPruner,
        n_looks: int,
        n_instances: int,
        look_cost: float,
        share: float = 0.5,
    ) -> None:
        self._pruner = pruner
        self._n_looks, self._n_instances = n_looks, n_instances
        self._look_cost, self._share = look_cost, share
        self._race = Race()

    def chosen(
        self, standings: LookStandings, waiting: Mapping[int, Sequence[float]], spent: Spent
    ) -> int | None:
        """The trial to promote now; None: more looks come first.

        Args:
            waiting: losses in looks of the waiting trials, by trial number.
            spent: compute of all recipes. One that runs at the target speed counts in full.
        """
        calls = self._n_instances - self._n_looks
        target = spent.target + calls
        if not waiting or target > self._share * (spent.looks + target):
            return None
        best = min(waiting, key=lambda number: (standings.predicted(waiting[number]), number))
        return None if self._pruner.judge(standings, waiting[best]).drop else best

    def forget(self) -> None:
        """Drop what is cached of the trials, because one of them has changed."""
        self._race.forget()

    def goes_on(self, study: optuna.Study, number: int, losses: Sequence[float]) -> bool:
        """Whether a running trial that has just made its looks is promoted at once."""
        return self._next(study, {number: losses}) == number

    def next_parameters(self, study: optuna.Study) -> dict[str, Any] | None:
        """The parameters of the trial to promote now; None: more looks come first."""
        number = self._next(study, {})
        if number is None:
            return None
        return next(t.params for t in study.get_trials(deepcopy=False) if t.number == number)

    def _next(self, study: optuna.Study, ready: Mapping[int, Sequence[float]]) -> int | None:
        trials = study.get_trials(deepcopy=False)
        standings = self._race.of(trials)
        if not isinstance(standings, LookStandings):
            return None
        recipes: dict[str, tuple[FrozenTrial, list[float]]] = {}  # longest trial of each recipe
        for trial in trials:
            losses = self._race.losses(trial)
            recipe = str(trial.user_attrs.get(RECIPE_KEY, trial.number))
            known = recipes.get(recipe)
            if losses and (known is None or len(losses) > len(known[1])):
                recipes[recipe] = trial, losses
        unfinished = [_parameters(t) for t in trials if t.state in _UNFINISHED]
        waiting = {
            trial.number: losses
            for trial, losses in recipes.values()
            if len(losses) == self._n_looks
            and trial.state == TrialState.PRUNED
            and is_feasible(trial)
            and trial.params not in unfinished
        }
        looks = sum(min(len(losses), self._n_looks) for _, losses in recipes.values())
        target = sum(self._committed(trial, losses) for trial, losses in recipes.values())
        promoted = sum(
            trial.state == TrialState.PRUNED and trial.params in unfinished
            for trial, losses in recipes.values()
            if len(losses) == self._n_looks
        )
        target += promoted * (self._n_instances - self._n_looks)
        spent = Spent(looks * self._look_cost, target)
        return self.chosen(standings, {**waiting, **ready}, spent)

    def _committed(self, trial: FrozenTrial, losses: Sequence[float]) -> int:
        """Calls at the target speed: those made, or all of them if the trial runs there now."""
        if len(losses) <= self._n_looks:
            return 0
        running = trial.state == TrialState.RUNNING
        return (self._n_instances if running else len(losses)) - self._n_looks


def promotion_of(
    pruner: optuna.pruners.BasePruner, instances: Sequence[Instance]
) -> Promotion | None:
    """The study's promotion; None if it has no looks or its pruner is not the racing one.

    Calls on these instances have to be stored, or a promoted recipe would make its looks again.
    """
    n_looks = count_looks(instances)
    if not n_looks or not isinstance(pruner, RacingPruner):
        return None
    speeds = [instance.speed or 0.0 for instance in instances]
    look_cost = sum(speeds[:n_looks]) / n_looks / speeds[-1]
    return Promotion(pruner, n_looks, len(instances), look_cost)


def _parameters(trial: FrozenTrial) -> Mapping[str, Any]:
    """A trial's parameters, also those that were fixed for it but not sampled yet."""
    fixed = trial.system_attrs.get(FIXED_PARAMS_KEY)
    return trial.params or (fixed if isinstance(fixed, dict) else {})
