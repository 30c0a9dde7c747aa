"""Trials as the page sees them: values of which it is known what they are, whoever wrote them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from ..problem.base import Method, Values
from .outcome import NO_OUTCOME
from .ranking import is_feasible
from .recipe import recipe_of


@dataclass(frozen=True)
class Call:
    """What a trial measured on one instance."""

    instance: str
    loss: float
    standard_error: float | None


@dataclass(frozen=True)
class Run:
    """A trial."""

    number: int
    state: TrialState
    outcome: str
    reason: str
    loss: float | None  # of one that was pruned: an estimate; finite
    standard_error: float | None
    longest_s: float | None  # of its calls
    cost: float | None  # CPU time of an answer, over the plain network's
    feasible: bool
    calls: Sequence[Call]
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    duration_s: float  # 0 until it is finished
    ended_s: float | None  # since the epoch
    trial: FrozenTrial

    @property
    def is_good(self) -> bool:
        """Complete and feasible, with a loss: may be best."""
        return self.state == TrialState.COMPLETE and self.feasible and self.loss is not None

    def recipe(self, method: Method) -> dict[str, Any] | None:
        """What it ran; None: not stored, or of a release with other fields."""
        try:
            return recipe_of(self.trial, method)
        except (KeyError, TypeError, ValueError):
            return None

    def ran(self, recipe: Values) -> bool:
        """Whether it ran this very recipe, complete; quicker than reading its own."""
        try:
            return bool(json.loads(self.trial.user_attrs["recipe"]) == dict(recipe))
        except (KeyError, TypeError, ValueError):
            return False

    @property
    def by_instance(self) -> dict[str, Call]:
        return {call.instance: call for call in self.calls}


def runs_of(trials: Sequence[FrozenTrial]) -> list[Run]:
    """All trials, by their numbers."""
    return [_run(t) for t in sorted(trials, key=lambda t: t.number)]


def best_of(runs: Sequence[Run]) -> list[Run]:
    """The complete, feasible ones, lowest loss first."""
    return sorted((r for r in runs if r.is_good), key=lambda r: (r.loss, r.number))


def finite(value: object) -> float | None:
    """``value`` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # JSON's whole numbers have any size
        return None
    return number if math.isfinite(number) else None


def _run(trial: FrozenTrial) -> Run:
    attrs = trial.user_attrs
    ended = trial.datetime_complete
    return Run(
        number=trial.number,
        state=trial.state,
        outcome=str(attrs.get("outcome", NO_OUTCOME)) if trial.state.is_finished() else "",
        reason=str(attrs.get("reason", "")),
        loss=finite(trial.values[0]) if trial.values else None,
        standard_error=finite(attrs.get("standard_error")),
        longest_s=finite(attrs.get("longest_call_s")),
        cost=finite(attrs.get("cost")),
        feasible=is_feasible(trial),
        calls=_calls(attrs.get("instances")),
        params=trial.params,
        distributions=trial.distributions,
        duration_s=trial.duration.total_seconds() if trial.duration is not None else 0.0,
        ended_s=None if ended is None else ended.timestamp(),
        trial=trial,
    )


def _calls(stored: object) -> tuple[Call, ...]:
    """Those entries that are what the service writes; others may stand there in any form."""
    found = []
    for entry in stored if isinstance(stored, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("instance"), str):
            continue
        loss = finite(entry.get("loss"))
        if loss is not None:
            found.append(Call(entry["instance"], loss, finite(entry.get("standard_error"))))
    return tuple(found)


@dataclass(frozen=True)
class Measured:
    """One instance's outcome, as it is stored with the trial."""

    instance: str
    loss: float
    standard_error: float
    seconds: float
    steps: int
    curve: tuple[float, ...]  # training loss, by share of the schedule; see `LearningCurve`
    per_t_bin: tuple[float | None, ...]  # loss by t, of `finetune.scoring.estimators.T_BINS` bins
    picture: str | None = None  # id of the artifact that shows it
    cost: float | None = None  # CPU time of an answer, over the plain network's
