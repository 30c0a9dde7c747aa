"""The dashboard's storage."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from bottle import HTTPError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ..artifacts.uploads import ARTIFACT_PREFIX
from ..errors import UserError
from ..storage.rdb import StudyStorage
from ..storage.retry import Retry
from ..storage.tables import states_of, trials_of
from ..trial.ranking import constraints_of, is_feasible, loss_of
from .attrs import NOTE_TEXT, NOTE_VERSION, PLOT

T = TypeVar("T")

_RETRY_S = 3.0  # short, because a person waits for the page
# Reading whole studies takes at most a fortieth of a core's time, however large they are. In
# between only running and new trials are read.
_REST = 40.0
_DASHBOARDS = "dashboard:"
_OF_STUDY = (NOTE_VERSION, NOTE_TEXT, PLOT)


@dataclass
class _Known:
    """A study's trials as they were last read."""

    best_before: float  # then all are read again, as attributes of finished trials may change
    by_id: dict[int, FrozenTrial]
    listed: list[FrozenTrial]  # by number


class WatchedStorage(StudyStorage):
    """`StudyStorage` for the threads of a long-running server: nothing is cached for long.

    A worker's storage caches finished trials for good, and is for one thread.  But a dashboard runs
    for so long that ids of deleted studies are reused and attributes of finished trials change.

    When the database is away, every method raises a `bottle.HTTPError` that says so.
    """

    def __init__(self, opened: StudyStorage) -> None:
        # People at the dashboard may write to any trial, as in Optuna.
        super().__init__(opened.rdb, worker="", retry=_Answering(opened.name, _RETRY_S))
        self._lock = threading.Lock()
        self._known: dict[int, _Known] = {}  # by study

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        with self._lock:
            trials = self._look(study_id)
        chosen = [t for t in trials if states is None or t.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def _look(self, study_id: int) -> list[FrozenTrial]:
        """All trials by number; unchanged trials are the same objects as before."""
        known = self._known.get(study_id)
        if known is None or time.monotonic() >= known.best_before:
            started = time.monotonic()
            fresh = self._read_trials(study_id)
            ended = time.monotonic()
            before = known.by_id if known else {}
            known = _Known(ended + _REST * (ended - started), {}, [])
        else:
            running = [i for i, t in known.by_id.items() if not t.state.is_finished()]
            highest = max(known.by_id, default=-1)
            fresh = self._read_trials(study_id, running, highest)
            before = known.by_id
        for trial in fresh:
            _make_fit(trial)
            trial_id = trial._trial_id
            if before.get(trial_id) != trial:
                known.by_id[trial_id] = trial
            else:
                known.by_id[trial_id] = before[trial_id]
        if fresh or not known.listed:
            known.listed = sorted(known.by_id.values(), key=lambda t: t.number)
        self._known[study_id] = known
        return known.listed

    def _read_trials(
        self, study_id: int, among: Collection[int] = (), after: int = -1
    ) -> list[FrozenTrial]:
        return self.read(
            lambda c: trials_of(c, [i for i, _ in states_of(c, study_id, among, after)])
        )

    def last_seen(self, study_id: int, trial_id: int) -> FrozenTrial | None:
        """A trial as it was last read; None if it was never read."""
        with self._lock:
            known = self._known.get(study_id)
            return known.by_id.get(trial_id) if known else None

    def kept_of_trials(self, study_id: int) -> dict[str, Any]:
        """The dashboard's attributes of trials, stored with the study: notes that people wrote.

        Raises:
            KeyError: there is no such study.
        """
        attrs = self.get_study_system_attrs(study_id)
        return {
            key: value
            for key, value in attrs.items()
            if key.startswith(_DASHBOARDS) and not key.startswith(_OF_STUDY)
        }

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best feasible trial; if none is feasible the best one, which
        `without_infeasible` then hides."""
        complete = self.get_all_trials(study_id, False, (TrialState.COMPLETE,))
        if not complete:
            raise ValueError("no trial is complete")
        (direction,) = self.get_study_directions(study_id)
        sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0

        def rank(trial: FrozenTrial) -> tuple[bool, float, int]:
            loss = loss_of(trial)
            is_good = loss is not None and is_feasible(trial)
            return not is_good, sign * (loss or 0.0), trial.number

        return min(complete, key=rank)


def _make_fit(trial: FrozenTrial) -> None:
    """Give a trial's attributes the form that the dashboard's page can read."""
    if not isinstance(trial.system_attrs.get("fixed_params", {}), dict):
        del trial.system_attrs["fixed_params"]
    for key in [key for key in trial.system_attrs if key.startswith(ARTIFACT_PREFIX)]:
        if not _is_object(trial.system_attrs[key]):
            del trial.system_attrs[key]
    # The dashboard reads only the older form of constraints, which other programs may not write.
    constraints = constraints_of(trial)
    if constraints is None:  # the page would fail on anything but numbers
        trial.system_attrs.pop("constraints", None)
    elif constraints:
        trial.system_attrs.setdefault("constraints", list(constraints.values()))


def _is_object(text: object) -> bool:
    """Whether a value is the text of a JSON object."""
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


class _Answering(Retry):
    """Gives up soon, with an error that the dashboard sends as its answer."""

    def call(self, operation: Callable[[], T]) -> T:
        try:
            return super().call(operation)
        except UserError as error:
            raise HTTPError(HTTPStatus.SERVICE_UNAVAILABLE.value, str(error)) from error
