"""Optuna's storage interface over a `Database`, with what a worker needs beyond it."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from . import transactions
from .cache import TrialCache
from .retry import Patience
from .tables import Database
from .transactions import Beat, NoTrial, Writes


class StudyStorage(BaseStorage):
    """A study's database as one worker sees it.

    Args:
        worker: who claims trials and writes them; nobody else may.
    """

    def __init__(self, database: Database, worker: str) -> None:
        self.database = database
        self.worker = worker
        self._batch: tuple[int, Writes] | None = None
        self._caches: dict[int, TrialCache] = {}  # by study
        # Of a study's parameters, as they were first seen: they may not change.
        self._distributions: dict[tuple[int, str], BaseDistribution] = {}
        self._study_of: dict[int, int] = {}  # of each trial that was made or claimed here

    # -- a worker's operations ---------------------------------------------------------------

    def create_study(
        self, name: str, attrs: Mapping[str, Any], queue: Sequence[Mapping[str, Any]]
    ) -> bool:
        """Create a study, its attributes and its first recipes as one; false if it exists."""
        try:
            return self.database.transact(
                lambda c: transactions.create_study(c, name, attrs, queue)
            )
        except sa.exc.IntegrityError:  # another process was quicker
            return False

    def join_study(self, study_id: int) -> int:
        """This worker's ordinal in the study, from 0."""
        return self.database.transact(lambda c: transactions.join_study(c, study_id))

    def claim(self, study_id: int, budget: int | None) -> int | NoTrial:
        """The id of a trial for this worker to run; see `transactions.claim`."""
        again = False

        def work(c: sa.Connection) -> int | NoTrial:
            nonlocal again
            tried, again = again, True
            return transactions.claim(c, study_id, self.worker, budget, again=tried)

        claimed = self.database.transact(work)
        if isinstance(claimed, int):
            self._study_of[claimed] = study_id
        return claimed

    def trials_for_sampling(self, study_id: int) -> list[FrozenTrial]:
        """See `TrialCache.for_sampling`."""
        return self._cache(study_id).for_sampling()

    @contextmanager
    def together(self, trial_id: int) -> Iterator[Writes]:
        """Writes to one trial inside this block become one transaction at its end.

        Raises:
            TrialTakenError: the trial is not this worker's any more.
        """
        if self._batch is not None:
            raise RuntimeError("a block of writes is open already")
        writes = Writes()
        self._batch = trial_id, writes
        try:
            yield writes
        finally:
            self._batch = None
        self._write(trial_id, writes)

    def beat(self, trial_id: int) -> bool:
        """A sign of life, not tried again; false if the trial is not this worker's any more."""
        with self.database.at_once() as c:
            return transactions.beat(c, trial_id, self.worker)

    def beats(self, study_id: int) -> list[Beat]:
        """The signs of life of all running trials, read once, not tried again."""
        with self.database.at_once() as c:
            return transactions.beats(c, study_id)

    def take_from_lost(self, lost: Beat, retries: int) -> TrialState | None:
        """Queue a lost worker's trial again, or fail it; see `transactions.take_from_lost`."""
        with self.database.at_once() as c:
            return transactions.take_from_lost(c, lost, retries)

    def hand_back(self, study_id: int, why: str, patience_s: float) -> list[int]:
        """Queue again what this worker holds; returns the numbers of those trials."""

        def work() -> list[int]:
            with self.database.at_once() as c:
                return transactions.hand_back(c, study_id, self.worker, why)

        return Patience(self.database.patience.what, patience_s).call(work)

    # -- Optuna's interface: trials ----------------------------------------------------------

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = self._cache(study_id).trials(
            [s for s in TrialState if states is None or s in states]
        )
        return copy.deepcopy(trials) if deepcopy else trials

    def _cache(self, study_id: int) -> TrialCache:
        return self._caches.setdefault(study_id, TrialCache(self.database, study_id))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        known = (cache.get(trial_id) for cache in self._caches.values())
        return next((t for t in known if t is not None), None) or self.database.get_trial(trial_id)

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        return self.database.system_attrs(trial_id)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if template_trial is None:
            # Optuna's own loop comes here after it looked for queued trials.
            claimed = self.claim(study_id, None)
            assert isinstance(claimed, int)
            return claimed
        return self.database.create_new_trial(study_id, template_trial)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if state.is_finished():
            self._write(trial_id, Writes(state=state, values=values))
            return True
        won = self.database.set_trial_state_values(trial_id, state, values)
        if won and state == TrialState.RUNNING:
            self.database.transact(lambda c: transactions.mark_claimed(c, trial_id, self.worker))
        return won

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        if trial_id not in self._study_of:
            self._study_of[trial_id] = self.database.study_of(trial_id)
        key = self._study_of[trial_id], param_name
        check_distribution_compatibility(
            self._distributions.setdefault(key, distribution), distribution
        )
        self._add(trial_id, Writes(params={param_name: (param_value_internal, distribution)}))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._add(trial_id, Writes(user_attrs={key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._add(trial_id, Writes(system_attrs={key: value}))

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        self._add(trial_id, Writes(reports={step: intermediate_value}))

    def _add(self, trial_id: int, writes: Writes) -> None:
        if self._batch is None or self._batch[0] != trial_id:
            self._write(trial_id, writes)
            return
        batch = self._batch[1]
        batch.params.update(writes.params)
        batch.user_attrs.update(writes.user_attrs)
        batch.system_attrs.update(writes.system_attrs)
        batch.reports.update(writes.reports)

    def _write(self, trial_id: int, writes: Writes) -> None:
        self.database.transact(lambda c: transactions.write(c, trial_id, self.worker, writes))

    # -- Optuna's interface: studies ---------------------------------------------------------

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        return self.database.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        self._caches.pop(study_id, None)
        self.database.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self.database.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.database.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self.database.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self.database.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self.database.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self.database.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self.database.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        return self.database.get_all_studies()

    def remove_session(self) -> None:
        self.database.remove_session()
