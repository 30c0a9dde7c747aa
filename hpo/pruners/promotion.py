"""Promotion: which recipes go on from looks to the target speed, and when.

A trial that has made all its looks waits.  Workers look at new recipes until the time for the best
one that waits has come; its calls at the target speed are then a trial of its own, which reads
the looks from the table of calls.
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

RECIPE_KEY = "recipe"  # user attribute of a trial: equal for equal recipes
_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True)
class Spent:
    """What a search has spent, in calls at the target speed: on looks, and there."""

    looks: float
    target: float


class Promotion:
    """Chooses by evidence: the best recipe that waits, unless the race would drop it.

    Looks have a share of the compute.  A recipe is promoted as soon as its calls at the target
    speed, all of them, fit into what the other share leaves.

    Args:
        pruner: whose test drops those that wait.
        n_looks: instances at lower speeds, the first ones.
        n_instances: all of them.
        look_cost: of a look, over that of a call at the target speed.
        share: of the compute that calls at the target speed have.
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
            waiting: looks of the trials that wait, by their numbers.
            spent: on all recipes, those that run at the target speed in full.
        """
        calls = self._n_instances - self._n_looks
        target = spent.target + calls
        if not waiting or target > self._share * (spent.looks + target):
            return None
        best = min(waiting, key=lambda number: (standings.predicted(waiting[number]), number))
        return None if self._pruner.judge(standings, waiting[best]).drop else best

    def forget(self) -> None:
        """Look at all trials again: one of them has changed."""
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
        recipes: dict[str, tuple[FrozenTrial, list[float]]] = {}  # each one's longest trial
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
        """Calls of a trial at the target speed, of one that runs there all that it may make."""
        if len(losses) <= self._n_looks:
            return 0
        running = trial.state == TrialState.RUNNING
        return (self._n_instances if running else len(losses)) - self._n_looks


def promotion_of(
    pruner: optuna.pruners.BasePruner, instances: Sequence[Instance]
) -> Promotion | None:
    """How a study promotes; None: it has no looks, or its pruner does not race.

    Calls on these instances have to be kept, or a promoted recipe would look again.
    """
    n_looks = count_looks(instances)
    if not n_looks or not isinstance(pruner, RacingPruner):
        return None
    speeds = [instance.speed or 0.0 for instance in instances]
    look_cost = sum(speeds[:n_looks]) / n_looks / speeds[-1]
    return Promotion(pruner, n_looks, len(instances), look_cost)


def _parameters(trial: FrozenTrial) -> Mapping[str, Any]:
    """Of a trial that may not have sampled them yet."""
    fixed = trial.system_attrs.get(FIXED_PARAMS_KEY)
    return trial.params or (fixed if isinstance(fixed, dict) else {})
