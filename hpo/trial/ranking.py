"""Ranking of trials: which are feasible, and which are best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from optuna.trial import FrozenTrial, TrialState

from ..formatting import with_error
from ..process.logging import warn
from .record import read_trial
from .stored import finite

# Keys of Optuna's constraints; a trial is feasible when none is above zero.
OVER_LIMIT = "seconds over the limit"
OVER_COST = "cost of an answer over the limit"
FAILED = "failed"


def constraints_of(trial: FrozenTrial) -> Mapping[str, float] | None:
    """The trial's constraints; None if another program stored something else under their key."""
    try:
        found = trial.constraints
    except TypeError:
        return None
    numbers = all(type(value) in (int, float) for value in found.values())
    return found if numbers else None


def loss_of(trial: FrozenTrial) -> float | None:
    """The trial's loss, or the estimate of a pruned trial; None if there is no finite one."""
    return finite(trial.values[0]) if trial.values else None


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether the trial kept all limits and did not fail by its recipe's fault."""
    constraints = constraints_of(trial)
    return constraints is not None and all(value <= 0 for value in constraints.values())


def why_passed_over(trial: FrozenTrial) -> str | None:
    """Why a finished trial is ignored, as no worker stores it so; None if nothing is odd."""
    if constraints_of(trial) is None:
        return "constraints should be numbers; the trial is passed over"
    if trial.state == TrialState.COMPLETE and loss_of(trial) is None:
        value = trial.values[0] if trial.values else None
        return f"its loss is {value}; the trial is passed over"
    return None


def was_measured(trial: FrozenTrial) -> bool:
    """Whether a worker of this service ran the trial, and not another program."""
    record = read_trial(trial)
    return record.recipe is not None and bool(record.instances)


def best_trials(trials: Iterable[FrozenTrial], count: int | None = None) -> list[FrozenTrial]:
    """The complete, feasible trials, lowest loss first; at most ``count`` of them."""
    complete = [(loss_of(t), t) for t in trials if t.state == TrialState.COMPLETE]
    good = [(loss, t) for loss, t in complete if loss is not None and is_feasible(t)]
    return [t for _, t in sorted(good, key=lambda pair: (pair[0], pair[1].number))][:count]


def best_measured(trials: Iterable[FrozenTrial]) -> Iterator[FrozenTrial]:
    """The `best_trials` that a worker of this service ran; others are named in the log."""
    for trial in best_trials(trials):
        if was_measured(trial):
            yield trial
        else:
            warn(f"trial {trial.number} was not measured here; it is passed over")


def describe_loss(trial: FrozenTrial) -> str:
    """A trial's loss, with its standard error if that is known."""
    return with_error(trial.value, read_trial(trial).standard_error)
