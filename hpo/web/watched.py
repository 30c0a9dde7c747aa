"""A study's database as the dashboard is to see it."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Container, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

from bottle import HTTPError
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from finetune.errors import UserError

from ..patience import Patience
from ..results import is_feasible
from ..study_storage import StudyStorage

T = TypeVar("T")

_PATIENCE_S = 3.0  # someone waits for the page
# Reading takes at most one part in six of a core's time, however large the study.
_REST = 5.0


class WatchedStorage(StudyStorage):
    """`StudyStorage` for the threads of a server that stays up: nothing is kept for long.

    A worker's storage keeps what is finished, and is for one thread.  A dashboard outlives
    studies whose ids are given out again, and attributes of finished trials that change.

    When the database is away, every method raises a `bottle.HTTPError` that says so.
    """

    def __init__(self, opened: StudyStorage) -> None:
        opened.database.patience = _Answering(opened.database.patience.what, _PATIENCE_S)
        super().__init__(opened.database, opened.worker)
        self._lock = threading.Lock()
        self._read: dict[int, tuple[float, list[FrozenTrial]]] = {}  # by study, with best before

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        with self._lock:
            best_before, trials = self._read.get(study_id, (0.0, []))
            if time.monotonic() >= best_before:
                started = time.monotonic()
                ids = [trial_id for trial_id, _ in self.database.states_of(study_id, (), -1)]
                trials = sorted(self.database.whole_trials(ids), key=lambda t: t.number)
                for trial in trials:
                    _show_constraints(trial)
                ended = time.monotonic()
                self._read[study_id] = ended + _REST * (ended - started), trials
        chosen = [t for t in trials if states is None or t.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best feasible trial; if none is feasible the best one, which see `without_slow`."""
        complete = self.get_all_trials(study_id, False, (TrialState.COMPLETE,))
        if not complete:
            raise ValueError("no trial is complete")
        (direction,) = self.get_study_directions(study_id)
        sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
        return min(complete, key=lambda t: (not is_feasible(t), sign * (t.value or 0.0), t.number))

    # Whoever may write from the dashboard may write to any trial, as in Optuna; here a trial is
    # its worker's alone.

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        return bool(self.database.set_trial_state_values(trial_id, state, values))

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        self.database.set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.database.set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.database.set_trial_system_attr(trial_id, key, value)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        self.database.set_trial_intermediate_value(trial_id, step, intermediate_value)


def _show_constraints(trial: FrozenTrial) -> None:
    # The dashboard reads only the older form, which other programs need not write.
    if trial.constraints:
        trial.system_attrs.setdefault("constraints", list(trial.constraints.values()))


class _Answering(Patience):
    """Gives up soon, by an error that the dashboard sends as its answer."""

    def call(self, operation: Callable[[], T]) -> T:
        try:
            return super().call(operation)
        except UserError as error:
            raise HTTPError(HTTPStatus.SERVICE_UNAVAILABLE.value, str(error)) from error


def without_infeasible(view: Callable[..., Any]) -> Callable[..., Any]:
    """A plug-in for the dashboard: it shows as best whatever is in ``best_trials``."""

    def filtered(*args: Any, **kwargs: Any) -> Any:
        answer = view(*args, **kwargs)
        if isinstance(answer, dict) and "best_trials" in answer:
            answer["best_trials"] = [
                trial
                for trial in answer["best_trials"]
                if all(excess <= 0 for excess in trial["constraints"])
            ]
        return answer

    return filtered
