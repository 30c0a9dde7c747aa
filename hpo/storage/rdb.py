"""A study's database as one worker sees it: Optuna's storage interface, and what workers need."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ..process.logging import warn
from . import calls, recovery, tables, transactions, workers
from .cache import TrialCache
from .calls import CallRow
from .dialects import dialect_of
from .optuna_internals import FrozenStudy
from .presence import Identity, Presence
from .recovery import Heartbeat
from .retry import Retry
from .statements import set_worker
from .transactions import NoTrial, Taken, Writes

T = TypeVar("T")


class StudyStorage(BaseStorage):
    """A storage on Optuna's tables that reads in few statements and writes in few transactions.

    It delegates operations on whole studies to Optuna's `RDBStorage`, which also creates the
    tables. It is not a subclass: Optuna puts a cache in front of every `RDBStorage`, and that cache
    does not know of claimed trials; and the dashboard would offer to migrate its tables.

    Operations are retried while the database is away, unless they say otherwise.  A storage is for
    one thread and its heartbeat's thread.

    Args:
        rdb: Optuna's storage of the database.
        worker: name under which trials are claimed; only the worker that claimed a trial may write
            to it. With an empty name, as for a person at the dashboard, nothing is claimed and any
            unfinished trial may be written to.
        retry: how operations are retried.
    """

    def __init__(self, rdb: RDBStorage, worker: str, retry: Retry) -> None:
        self.rdb = rdb
        self.engine: sa.Engine = rdb.engine
        self.worker = worker
        self.retry = retry
        dialect_of(self.engine).tune(self.engine)
        self._presence = Presence(self.engine, retry.name)
        self._reading = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._batch: tuple[int, Writes] | None = None
        self._keeps_calls: bool | None = None  # None: not known yet
        self._forget()

    def _forget(self) -> None:
        """Empty all caches."""
        self._caches: dict[int, TrialCache] = {}  # by study
        # The distributions of parameters; within a study they may not change.
        self._distributions: dict[tuple[int, str], BaseDistribution] = {}
        self._study_of: dict[int, int] = {}  # by trial
        self._claimed: set[int] = set()  # trials that this worker holds, or has held

    def __getstate__(self) -> dict[str, Any]:
        return {"rdb": self.rdb, "worker": self.worker, "retry": self.retry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        StudyStorage.__init__(self, **state)

    @property
    def name(self) -> str:
        """The database's URL without passwords."""
        return self.retry.name

    # -- transactions ------------------------------------------------------------------------

    def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in one transaction, and retry until it is committed.

        If the answer to a commit is lost, ``work`` is repeated although it has succeeded.
        """

        def once() -> T:
            with self.transaction() as connection:
                return work(connection)

        return self.retry.call(once)

    def transaction(self) -> AbstractContextManager[sa.Connection]:
        """A transaction that is not retried.

        Raises:
            StudyGoneError: the database's file is not the one that `identify` saw.
        """
        self._presence.check_file()
        return self.engine.begin()

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work``, which only reads, and retry until it succeeds.

        Each statement is a transaction of its own, which saves the round trips to begin and end
        one.
        """

        def once() -> T:
            self._presence.check_file()
            with self._reading.connect() as connection:
                return work(connection)

        return self.retry.call(once)

    def _transact_counted(self, work: Callable[[sa.Connection, bool], T]) -> T:
        """`transact` for work that has to know whether it is a retry."""
        again = False

        def counted(connection: sa.Connection) -> T:
            nonlocal again
            is_again, again = again, True
            return work(connection, is_again)

        return self.transact(counted)

    # -- a worker's operations ---------------------------------------------------------------

    def create_study(
        self,
        name: str,
        attrs: Mapping[str, Any],
        queue: Sequence[Mapping[str, Any]],
        taken: Taken | None = None,
    ) -> bool:
        """Create a study, its user attributes and its first trials in one transaction.

        Args:
            queue: parameters of the trials that run first, in this order.
            taken: trials and calls of another study that this one takes over.

        Returns:
            Whether it was created; false if a study of that name exists.
        """
        try:
            return self.transact(lambda c: transactions.create_study(c, name, attrs, queue, taken))
        except sa.exc.IntegrityError:  # another process was quicker
            return False

    def identify(self, study_id: int) -> None:
        """From now on check that the study is still this one, and not another with the same id.

        Once the study is deleted, claims and operations on its attributes and trials raise
        StudyGoneError. Once the database's file is removed or replaced, all operations do.
        """
        found = self.transact(lambda c: transactions.identify(c, study_id))
        self._presence.keep(study_id, found)

    @contextmanager
    def _of_study(self, study_id: int) -> Iterator[str | None]:
        """Yield the study's token; turn KeyError into StudyGoneError if the study is checked."""
        try:
            yield self._presence.token(study_id)
        except KeyError as error:
            raise (self._presence.gone(study_id) or error) from error

    def join(self, study_id: int) -> int:
        """Give this worker an ordinal in the study, from 0, that no other worker ever gets."""
        with self._of_study(study_id) as token:
            return self.transact(lambda c: transactions.join(c, study_id, token))

    def queue_starts(self, study_id: int, starts: Sequence[Mapping[str, Any]]) -> int:
        """Queue the starting trials that were never queued in the study; returns how many."""
        with self._of_study(study_id) as token:
            return self.transact(lambda c: transactions.queue_starts(c, study_id, starts, token))

    def queue_once(self, study_id: int, parameters: Mapping[str, Any]) -> bool:
        """Queue a trial of these parameters, unless an unfinished trial was queued with them.

        Returns:
            Whether it was queued.

        Raises:
            StudyGoneError: the study that `identify` saw was deleted.
        """
        with self._of_study(study_id) as token:
            return self.transact(lambda c: transactions.queue_once(c, study_id, parameters, token))

    def claim(self, study_id: int, budget: int | None) -> int | NoTrial:
        """Claim a trial for this worker: a queued one, else a new one.

        Args:
            budget: most finished and running trials of the study; None: any number.

        Returns:
            The trial's id, or why there is none.

        Raises:
            StudyGoneError: the study that `identify` saw was deleted.
        """
        with self._of_study(study_id) as token:
            claimed = self._transact_counted(
                lambda c, again: transactions.claim(c, study_id, self.worker, budget, again, token)
            )
        if isinstance(claimed, int):
            self._study_of[claimed] = study_id
            self._claimed.add(claimed)
        return claimed

    @contextmanager
    def batch(self, trial_id: int) -> Iterator[Writes]:
        """Collect writes to one trial and make them in one transaction at the end of the block.

        Raises:
            TrialTakenError: the trial no longer belongs to this worker.
        """
        if self._batch is not None:
            raise RuntimeError("a batch of writes is open already")
        writes = Writes()
        self._batch = trial_id, writes
        try:
            yield writes
        finally:
            self._batch = None
        self._write(trial_id, writes)

    def beat(self, trial_id: int) -> bool:
        """Write a heartbeat, without retries; false if the trial is no longer this worker's."""
        with self.transaction() as c:
            return recovery.beat(c, trial_id, self.worker)

    def heartbeats(self, study_id: int) -> list[Heartbeat]:
        """Read the heartbeats of all running trials, without retries."""
        with self.transaction() as c:
            return recovery.heartbeats(c, study_id)

    def reclaim(self, lost: Heartbeat, retries: int) -> TrialState | None:
        """Take a trial from a lost worker, without retries; see `recovery.reclaim`."""
        with self.transaction() as c:
            return recovery.reclaim(c, lost, retries, self._keeps_calls is True)

    def release(
        self, study_id: int, why: str, limit_s: float, entry: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Queue this worker's trials again; returns their numbers.

        Args:
            why: reason, for the trials' attribute ``attempts``.
            limit_s: how long this is retried.
            entry: new row of the worker, written in the same transaction; None: it stays.

        Raises:
            StudyGoneError: there is an entry to write, and the study that `identify` saw was
                deleted.
        """

        def work() -> list[int]:
            with self.transaction() as c:
                if entry is not None:  # first, because claims lock the study before its trials, too
                    workers.write_entry(c, study_id, self.worker, entry, token)
                return recovery.release(c, study_id, self.worker, why, self._keeps_calls is True)

        with self._of_study(study_id) as token:
            return Retry(self.name, limit_s).call(work)

    def write_entry(self, study_id: int, entry: Mapping[str, Any]) -> None:
        """Write this worker's own row in the study; see `hpo.study.workers`.

        Raises:
            StudyGoneError: the study that `identify` saw was deleted.
        """
        with self._of_study(study_id) as token:
            self.transact(lambda c: workers.write_entry(c, study_id, self.worker, entry, token))

    def keeps_calls(self) -> bool:
        """Whether calls can be stored here; the first time, create their table if need be.

        If it can't be created, that is logged once, and calls are not stored.
        """
        if self._keeps_calls is None:
            why_not = self.retry.call(lambda: calls.make_table(self.engine))
            self._keeps_calls = why_not is None
            if why_not is not None:
                warn(
                    f"{self.name}: calls are not kept ({why_not}); grant the rights to make and "
                    f"to use the table {calls.CALLS.name}, or run hpo.init as its owner"
                )
        return self._keeps_calls

    def calls_of(self, recipe: str) -> list[CallRow]:
        """The stored calls of a recipe, by its digest, of any study."""
        return self.read(lambda c: calls.calls_of(c, recipe)) if self.keeps_calls() else []

    def calls_of_study(self, study_id: int) -> list[CallRow]:
        """A study's stored calls; none if the table does not exist."""

        def work(c: sa.Connection) -> list[CallRow]:
            return list(calls.calls_of_study(c, study_id)) if calls.has_table(c) else []

        return self.transact(work)

    def keep_calls(self, rows: Sequence[CallRow]) -> None:
        """Write calls that belong to no trial; a trial's calls are in `Writes.calls`."""
        if self.keeps_calls():
            self.transact(lambda c: calls.write_calls(c, rows))

    def count_calls(self, study_id: int) -> int:
        """How many calls a study has stored; 0 if the table does not exist."""
        return self.read(lambda c: calls.count_of_study(c, study_id))

    def forget_trials(self, study_id: int) -> None:
        """Empty the cache of a study's finished trials, because a person has changed one."""
        self._caches.pop(study_id, None)

    def trials_for_sampling(self, study_id: int) -> list[FrozenTrial]:
        """See `TrialCache.for_sampling`."""
        with self._of_study(study_id):
            return self._cache(study_id).for_sampling()

    # -- Optuna's interface: trials ----------------------------------------------------------

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        wanted = [s for s in TrialState if states is None or s in states]
        with self._of_study(study_id):
            trials = self._cache(study_id).trials(wanted)
        return copy.deepcopy(trials) if deepcopy else trials

    def _cache(self, study_id: int) -> TrialCache:
        return self._caches.setdefault(study_id, TrialCache(self.read, study_id))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        for cache in self._caches.values():
            if (known := cache.get(trial_id)) is not None:
                return known
        trials = self.read(lambda c: tables.trials_of(c, [trial_id]))
        if not trials:
            raise KeyError(f"no trial has the id {trial_id}")
        return trials[0]

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        return self.read(lambda c: tables.system_attrs_of(c, trial_id))

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        added = self.retry.call(partial(self.rdb.create_new_trial, study_id, template_trial))
        if template_trial is None or template_trial.state == TrialState.RUNNING:
            self._take(added)
        return added

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if state != TrialState.RUNNING:
            self._write(trial_id, Writes(state=state, values=values))
            return True
        is_started = self.retry.call(partial(self.rdb.set_trial_state_values, trial_id, state))
        if is_started:
            self._take(trial_id)
        return is_started

    def _take(self, trial_id: int) -> None:
        """Claim a trial that Optuna sets to running, for this worker."""
        if self.worker:
            self.transact(lambda c: set_worker(c, trial_id, self.worker))
            self._claimed.add(trial_id)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        try:
            self._check_distribution(self._study(trial_id), param_name, distribution)
        except ValueError:
            self._write(trial_id, Writes())  # an error that the trial takes no writes comes first
            raise
        self._add(trial_id, Writes(params={param_name: (param_value_internal, distribution)}))

    def _study(self, trial_id: int) -> int:
        """The trial's study; raises KeyError if there is no such trial."""
        if trial_id not in self._study_of:
            self._study_of[trial_id] = self.read(lambda c: tables.study_of(c, trial_id))
        return self._study_of[trial_id]

    def _check_distribution(self, study_id: int, name: str, new: BaseDistribution) -> None:
        """Raise ValueError if the study has this parameter with an incompatible distribution."""
        known = self._distributions.get((study_id, name))
        if known is None:
            found = self.read(lambda c: tables.distribution_of(c, study_id, name))
            known = self._distributions[study_id, name] = new if found is None else found
        check_distribution_compatibility(known, new)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._add(trial_id, Writes(user_attrs={key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._add(trial_id, Writes(system_attrs={key: value}))

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        self._add(trial_id, Writes(reports={step: intermediate_value}))

    def _add(self, trial_id: int, writes: Writes) -> None:
        """Write at once, or at the end of the trial's batch."""
        if self._batch is None or self._batch[0] != trial_id:
            self._write(trial_id, writes)
        else:
            self._batch[1].add(writes)

    def _write(self, trial_id: int, writes: Writes) -> None:
        was_claimed = trial_id in self._claimed
        self._transact_counted(
            lambda c, again: transactions.write(
                c, trial_id, self.worker, writes, was_claimed, again
            )
        )

    # -- Optuna's interface: studies ---------------------------------------------------------

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        return self.retry.call(partial(self.rdb.create_new_study, directions, study_name))

    def delete_study(self, study_id: int) -> None:
        identity = self.transact(lambda c: transactions.identify(c, study_id))
        # Optuna silently does nothing if a worker adds a trial at the same moment.
        while self._is_there(study_id, identity):
            self.retry.call(partial(self.rdb.delete_study, study_id))
        self.transact(lambda c: calls.forget_study(c, study_id))
        self._forget()  # SQLite reuses the ids of deleted rows

    def _is_there(self, study_id: int, identity: Identity) -> bool:
        try:
            found = self.transact(lambda c: transactions.identify(c, study_id))
        except KeyError:
            return False
        return found == identity

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        with self._of_study(study_id) as token:
            self.transact(
                lambda c: transactions.set_study_user_attr(c, study_id, key, value, token)
            )

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.retry.call(partial(self.rdb.set_study_system_attr, study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        return self.retry.call(partial(self.rdb.get_study_id_from_name, study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        return self.retry.call(partial(self.rdb.get_study_name_from_id, study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self.retry.call(partial(self.rdb.get_study_directions, study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self.retry.call(partial(self.rdb.get_study_user_attrs, study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self.retry.call(partial(self.rdb.get_study_system_attrs, study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        return self.retry.call(self.rdb.get_all_studies)

    def remove_session(self) -> None:
        self.rdb.remove_session()
