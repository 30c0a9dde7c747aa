"""A trial as its readers see it: Optuna's part of it, and its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from ..problem.base import InvalidValuesError, Method, Values
from .outcome import NO_OUTCOME
from .ranking import is_feasible, loss_of
from .recipe import recipe_of
from .record import Call, TrialRecord, compute_s, read_trial


@dataclass(frozen=True)
class Run:
    """A trial, of this service or another program.

    Args:
        trial: as the storage returns it.
        record: its user attributes.
        loss: its loss, or the estimate of a pruned trial; None if there is no finite one.
    """

    trial: FrozenTrial
    record: TrialRecord
    loss: float | None

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def state(self) -> TrialState:
        return self.trial.state

    @property
    def outcome(self) -> str:
        """How the trial ended, perhaps in the word of another release; empty while it runs."""
        if not self.state.is_finished():
            return ""
        return NO_OUTCOME if self.record.outcome is None else self.record.outcome

    @property
    def reason(self) -> str:
        return self.record.reason

    @property
    def standard_error(self) -> float | None:
        return self.record.standard_error

    @property
    def longest_s(self) -> float | None:
        """Seconds of the longest call."""
        return self.record.longest_call_s

    @property
    def cost(self) -> float | None:
        """CPU time of an answer, relative to the plain network's."""
        return self.record.cost

    @cached_property
    def feasible(self) -> bool:
        return is_feasible(self.trial)

    @property
    def calls(self) -> Sequence[Call]:
        return self.record.instances

    @property
    def counted(self) -> Sequence[Call]:
        """The calls whose mean is the trial's loss."""
        return self.record.counted

    @property
    def params(self) -> Mapping[str, Any]:
        return self.trial.params

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        return self.trial.distributions

    @property
    def compute_s(self) -> float:
        """Seconds that workers ran the trial, without an attempt that still runs."""
        return compute_s(self.trial)

    @property
    def ended_s(self) -> float | None:
        """When the trial ended, in seconds since the epoch."""
        ended = self.trial.datetime_complete
        return None if ended is None else ended.timestamp()

    @property
    def is_good(self) -> bool:
        """Whether it is complete and feasible and has a loss, so that it may be the best trial."""
        return self.state == TrialState.COMPLETE and self.feasible and self.loss is not None

    def recipe(self, method: Method) -> dict[str, Any] | None:
        """The values that it ran with; None if they are not stored or are of another release."""
        try:
            return recipe_of(self.record, method)
        except InvalidValuesError:
            return None

    def ran(self, recipe: Values) -> bool:
        """Whether it ran with exactly these complete values."""
        return self.record.recipe == dict(recipe)

    @property
    def by_instance(self) -> dict[str, Call]:
        return {call.instance: call for call in self.counted}


def run_of(trial: FrozenTrial) -> Run:
    """Read a trial with its record."""
    return Run(trial, read_trial(trial), loss_of(trial))


def runs_of(trials: Sequence[FrozenTrial]) -> list[Run]:
    """Read all trials, ordered by number."""
    return [run_of(t) for t in sorted(trials, key=lambda t: t.number)]


def best_of(runs: Sequence[Run]) -> list[Run]:
    """The complete, feasible trials, lowest loss first."""
    return sorted((r for r in runs if r.is_good), key=lambda r: (r.loss, r.number))
