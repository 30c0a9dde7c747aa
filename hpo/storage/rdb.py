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
    """Optuna's tables, read in few statements and written in few transactions.

    It holds Optuna's `RDBStorage`, which makes the tables and does what is done to whole studies,
    and is none itself: in front of every `RDBStorage` Optuna puts a cache of its own, which does
    not know of claimed trials, and the dashboard offers to migrate its tables.

    Every operation is tried again while the database is away, but for those that say otherwise.
    A storage is for one thread, and for its heartbeat's.

    Args:
        rdb: Optuna's storage of the database.
        worker: who claims trials. Nobody else may write them. An empty name claims nothing and may
            write to any trial that is not finished: a person at the dashboard.
        retry: how operations are tried again.
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
        self._keeps_calls: bool | None = None  # None: nobody has asked yet
        self._forget()

    def _forget(self) -> None:
        """Begin with nothing known of studies and trials."""
        self._caches: dict[int, TrialCache] = {}  # by study
        # The distribution of each parameter of a study, which may not change.
        self._distributions: dict[tuple[int, str], BaseDistribution] = {}
        self._study_of: dict[int, int] = {}  # by trial
        self._claimed: set[int] = set()  # trials that this worker holds, or has held

    def __getstate__(self) -> dict[str, Any]:
        return {"rdb": self.rdb, "worker": self.worker, "retry": self.retry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        StudyStorage.__init__(self, **state)

    @property
    def name(self) -> str:
        """The database's URL as it may be printed."""
        return self.retry.name

    # -- transactions ------------------------------------------------------------------------

    def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in one transaction, again and again until it is committed.

        When a commit's answer is lost, ``work`` runs once more on top of its own effects.
        """

        def once() -> T:
            with self.transaction() as connection:
                return work(connection)

        return self.retry.call(once)

    def transaction(self) -> AbstractContextManager[sa.Connection]:
        """One transaction that is not tried again.

        Raises:
            StudyGoneError: the database's file is not the one that `identify` saw.
        """
        self._presence.check_file()
        return self.engine.begin()

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work``, which writes nothing, again and again until it succeeds.

        Each of its statements is a transaction of its own, which saves the round trips that begin
        and end one.
        """

        def once() -> T:
            self._presence.check_file()
            with self._reading.connect() as connection:
                return work(connection)

        return self.retry.call(once)

    def _transact_counted(self, work: Callable[[sa.Connection, bool], T]) -> T:
        """`transact` for work that has to know whether it is run again."""
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
            taken: what another study has measured and this one begins with.

        Returns:
            Whether it was created; false if there is one of that name.
        """
        try:
            return self.transact(lambda c: transactions.create_study(c, name, attrs, queue, taken))
        except sa.exc.IntegrityError:  # another process was quicker
            return False

    def identify(self, study_id: int) -> None:
        """From now on work on this study alone, and on no other that gets its id.

        Claims, attributes of the study and looks at its trials raise StudyGoneError once it was
        deleted; all operations do once the file of the database was removed or replaced.
        """
        found = self.transact(lambda c: transactions.identify(c, study_id))
        self._presence.keep(study_id, found)

    @contextmanager
    def _of_study(self, study_id: int) -> Iterator[str | None]:
        """Gives the study's token; that it is not there is told as it is meant."""
        try:
            yield self._presence.token(study_id)
        except KeyError as error:
            raise (self._presence.gone(study_id) or error) from error

    def join(self, study_id: int) -> int:
        """This worker's ordinal in the study, from 0: nobody else's, now or later."""
        with self._of_study(study_id) as token:
            return self.transact(lambda c: transactions.join(c, study_id, token))

    def queue_starts(self, study_id: int, starts: Sequence[Mapping[str, Any]]) -> int:
        """Queue those starting trials that were never queued in the study; returns how many."""
        with self._of_study(study_id) as token:
            return self.transact(lambda c: transactions.queue_starts(c, study_id, starts, token))

    def queue_once(self, study_id: int, parameters: Mapping[str, Any]) -> bool:
        """Queue a trial of these parameters, unless one that was queued with them has yet to end.

        Returns:
            Whether it was queued here.

        Raises:
            StudyGoneError: the study that `identify` saw was deleted.
        """
        with self._of_study(study_id) as token:
            return self.transact(lambda c: transactions.queue_once(c, study_id, parameters, token))

    def claim(self, study_id: int, budget: int | None) -> int | NoTrial:
        """A trial for this worker to run: a queued one, else a new one.

        Args:
            budget: how many trials may be finished and running in the study; None: any number.

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
        """Writes to one trial inside this block become one transaction at its end.

        Raises:
            TrialTakenError: the trial is not this worker's any more.
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
        """Write a heartbeat, not tried again; false if the trial is not this worker's any more."""
        with self.transaction() as c:
            return recovery.beat(c, trial_id, self.worker)

    def heartbeats(self, study_id: int) -> list[Heartbeat]:
        """The heartbeats of all running trials, read once, not tried again."""
        with self.transaction() as c:
            return recovery.heartbeats(c, study_id)

    def reclaim(self, lost: Heartbeat, retries: int) -> TrialState | None:
        """Take a trial from a lost worker, not tried again; see `recovery.reclaim`."""
        with self.transaction() as c:
            return recovery.reclaim(c, lost, retries, self._keeps_calls is True)

    def release(
        self, study_id: int, why: str, limit_s: float, entry: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Queue again what this worker holds; returns the numbers of those trials.

        Args:
            why: goes into the trials' attribute ``attempts``.
            limit_s: for how long this is tried again.
            entry: the worker's own row, written in the same transaction; None: it stays.

        Raises:
            StudyGoneError: an entry is to be written, and the study that `identify` saw was
                deleted.
        """

        def work() -> list[int]:
            with self.transaction() as c:
                if entry is not None:  # first, because claims lock the study before its trials
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
        """Whether calls can be kept here; the first time their table is made if need be.

        Where it can't be made, the log says so once, and nothing else changes.
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
        """The calls that are kept of a recipe, by its digest, whichever study keeps them."""
        return self.read(lambda c: calls.calls_of(c, recipe)) if self.keeps_calls() else []

    def calls_of_study(self, study_id: int) -> list[CallRow]:
        """The calls that a study keeps; it makes no table."""

        def work(c: sa.Connection) -> list[CallRow]:
            return list(calls.calls_of_study(c, study_id)) if calls.has_table(c) else []

        return self.transact(work)

    def keep_calls(self, rows: Sequence[CallRow]) -> None:
        """Write calls that are no trial's; `Writes.calls` are those of a trial."""
        if self.keeps_calls():
            self.transact(lambda c: calls.write_calls(c, rows))

    def count_calls(self, study_id: int) -> int:
        """How many calls a study keeps; it makes no table."""
        return self.read(lambda c: calls.count_of_study(c, study_id))

    def forget_trials(self, study_id: int) -> None:
        """Read a study's finished trials anew: a person has changed one."""
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
        """Make a trial that Optuna lets run this worker's."""
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
            self._write(trial_id, Writes())  # that the trial takes no writes counts for more
            raise
        self._add(trial_id, Writes(params={param_name: (param_value_internal, distribution)}))

    def _study(self, trial_id: int) -> int:
        """The trial's study; raises KeyError if there is no such trial."""
        if trial_id not in self._study_of:
            self._study_of[trial_id] = self.read(lambda c: tables.study_of(c, trial_id))
        return self._study_of[trial_id]

    def _check_distribution(self, study_id: int, name: str, new: BaseDistribution) -> None:
        """Raises ValueError if the study has a parameter of that name that is something else."""
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
        # Optuna gives up without a word where a worker adds a trial at the same moment.
        while self._is_there(study_id, identity):
            self.retry.call(partial(self.rdb.delete_study, study_id))
        self.transact(lambda c: calls.forget_study(c, study_id))
        self._forget()  # SQLite gives the ids of deleted rows to the next ones

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
