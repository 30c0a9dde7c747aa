"""Which trials count as good."""

from __future__ import annotations

from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..formatting import with_error
from .record import read_trial

# Keys of Optuna's constraints; a trial is feasible when none is above zero.
OVER_LIMIT = "seconds over the limit"
OVER_COST = "cost of an answer over the limit"
FAILED = "failed"


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether all limits were kept and no failure was the recipe's."""
    return all(value <= 0 for value in trial.constraints.values())


def best_trials(trials: Iterable[FrozenTrial], count: int | None = None) -> list[FrozenTrial]:
    """The complete, feasible trials, lowest loss first; at most ``count`` of them."""
    good = [t for t in trials if t.state == TrialState.COMPLETE and is_feasible(t)]
    return sorted(good, key=lambda t: (t.value, t.number))[:count]


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete, feasible trial of lowest loss; None if there is none yet."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return next(iter(best_trials(complete, 1)), None)


class NewlyComplete:
    """Gives each complete, feasible trial of a study once, as they finish."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def of(self, study: optuna.Study) -> list[FrozenTrial]:
        """Those that were not given before, by their numbers."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        new = [t for t in complete if t.number not in self._seen]
        self._seen.update(t.number for t in new)
        return [t for t in new if is_feasible(t)]


def describe_loss(trial: FrozenTrial) -> str:
    """A trial's loss with its standard error, where that is known."""
    return with_error(trial.value, read_trial(trial).standard_error)
