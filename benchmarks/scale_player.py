"""Many workers of `benchmarks.scale` in one process: a thread each, the service's own loop.

A worker claims, writes, reads and beats as a real one does, by connections of its own.  Three
things are less than real, all of them work of the worker's own machine: it does not compute, it
has not read the trials that were stored before it began (it is told where they end), and its
parameters are drawn at random.  What it reads of others' trials it forgets at once.
"""

from __future__ import annotations

import logging
import os
import random
import re
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from hpo.storage.cache import TrialCache
from hpo.storage.dialects import dialect_of
from hpo.storage.open import RETRY_S, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.storage.recovery import Heartbeat
from hpo.storage.retry import Retry
from hpo.storage.tables import TRIALS
from hpo.storage.transactions import NoTrial, Writes
from hpo.storage.url import parse_url
from hpo.study.config import Budget, Recovery, load_study_file
from hpo.worker.display import Display
from hpo.worker.loop import Loop, Watch

from .storage_fill import REPORTS, STUDY, TrialWork

# What a worker waits for, in the order of a trial's life.
OPERATIONS = ("claim", "sampling", "parameters", "report", "pruning", "finish", "beat", "look")
T = TypeVar("T")

_STACK_BYTES = 512 * 1024


@dataclass(frozen=True)
class Orders:
    """What a process shall play."""

    url: str
    workers: int
    first: int  # the first worker's number
    calls_s: Sequence[Sequence[float]]  # of recorded trials, the seconds of each call
    compress: float  # so many times quicker than it was
    heartbeat_s: float  # before compression
    grace_s: float


@dataclass
class Played:
    """What a process saw between two moments."""

    # By operation, the seconds of each; the database's answer is waited for in them.
    took_s: dict[str, list[float]] = field(default_factory=lambda: {o: [] for o in OPERATIONS})
    finished: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    trials_read: int = 0  # finished ones that others finished, each by each worker


class _Complaints(logging.Handler):
    """Counts what workers would tell their people: a database that did not answer, lost trials."""

    def __init__(self, notes: _Notes) -> None:
        super().__init__(logging.WARNING)
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        self._notes.add(error=re.sub(r"\d+", "N", record.getMessage())[:200])


class _OverError(KeyboardInterrupt):
    """The play is over: hand the trial back."""


class _Notes:
    """What all threads of the process write down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._played = Played()
        self._cpu_s = time.process_time()

    def took(self, operation: str, began: float) -> None:
        with self._lock:
            self._played.took_s[operation].append(time.monotonic() - began)

    def add(self, finished: int = 0, read: int = 0, error: str | None = None) -> None:
        with self._lock:
            self._played.finished += finished
            self._played.trials_read += read
            if error:
                self._played.errors[error] += 1

    def turn(self) -> Played:
        """What was seen since the last turn."""
        with self._lock:
            played, self._played = self._played, Played()
            now = time.process_time()
            played.cpu_s, self._cpu_s = now - self._cpu_s, now
        return played


def _with_own_pool(rdb: RDBStorage) -> RDBStorage:
    """The same with another connection pool; a new one would take Optuna a tenth of a second."""
    mine = object.__new__(RDBStorage)  # `copy` would go through all of Optuna's start
    vars(mine).update(vars(rdb))
    url = parse_url(rdb.url)
    mine.engine = sa.create_engine(url, **dialect_of(url).engine_options(url))
    return mine


class _Forgetful(TrialCache):
    """A cache that keeps of each finished trial its number and state alone."""

    notes: _Notes

    def _whole(self, ids: Collection[int]) -> list[FrozenTrial]:
        trials = super()._whole(ids)
        self.notes.add(read=sum(t.state.is_finished() for t in trials))
        for trial in trials:
            if trial.state.is_finished():
                trial.params = {}
                trial.distributions = {}
                trial.user_attrs = {}
                trial.system_attrs = {}
                trial.intermediate_values = {}
        return trials


class _Timed(StudyStorage):
    """A worker's storage that writes down how long each operation took."""

    def __init__(
        self, rdb: RDBStorage, worker: str, notes: _Notes, study_id: int, highest_id: int
    ) -> None:
        super().__init__(rdb, worker, Retry(STUDY, RETRY_S))
        self._notes = notes
        cache = _Forgetful(self.read, study_id)
        cache.notes = notes
        cache._highest_id = highest_id
        self._caches[study_id] = cache

    def _timed(self, operation: str, call: Callable[[], T]) -> T:
        began = time.monotonic()
        result = call()
        self._notes.took(operation, began)
        return result

    def claim(self, study_id: int, budget: int | None) -> int | NoTrial:
        return self._timed("claim", lambda: super(_Timed, self).claim(study_id, budget))

    def trials_for_sampling(self, study_id: int) -> list[FrozenTrial]:
        return self._timed("sampling", lambda: super(_Timed, self).trials_for_sampling(study_id))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        return self._timed(
            "pruning", lambda: super(_Timed, self).get_all_trials(study_id, deepcopy, states)
        )

    def _write(self, trial_id: int, writes: Writes) -> None:
        kind = "finish" if writes.state else "report" if writes.reports else "parameters"
        self._timed(kind, lambda: super(_Timed, self)._write(trial_id, writes))
        self._notes.add(finished=kind == "finish")

    def beat(self, trial_id: int) -> bool:
        return self._timed("beat", lambda: super(_Timed, self).beat(trial_id))

    def heartbeats(self, study_id: int) -> list[Heartbeat]:
        return self._timed("look", lambda: super(_Timed, self).heartbeats(study_id))


class _Silent(Display):
    """Shows nothing."""

    def __init__(self) -> None:
        pass

    @property
    def is_on(self) -> bool:
        return False

    def show_study(self, trials: Sequence[FrozenTrial]) -> None:
        pass

    def show_trial(self, title: str, share: float = 0.0, loss: float | None = None) -> None:
        pass


class _Looking(optuna.pruners.BasePruner):
    """Reads what the racing pruner reads, and prunes nothing."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return False


class _Recorded(TrialWork):
    """A trial's work whose calls take as long as recorded ones, less what they are compressed."""

    def __init__(self, orders: Orders, number: int, stop: threading.Event) -> None:
        super().__init__(load_study_file("runes-default"), 0.0, number)
        self._calls_s = orders.calls_s
        self._compress = orders.compress
        self._stop = stop
        # Workers are in the middle of their trials when the play begins.
        self._skip = self._rng.randrange(REPORTS)
        self._chosen: Sequence[float] = ()
        self._call = 0

    def __call__(self, trial: optuna.Trial, batch: Any) -> float:
        self._chosen, self._call = self._rng.choice(self._calls_s), 0
        return super().__call__(trial, batch)

    def _sleep(self) -> None:
        seconds = self._chosen[self._call % len(self._chosen)] / self._compress
        self._call += 1
        if self._skip:
            self._skip -= 1
            seconds = 0.0 if self._skip else seconds * self._rng.random()
        if self._stop.wait(seconds):
            raise _OverError


def play(orders: Orders, pipe: Connection) -> None:
    """Play until the other end of ``pipe`` says so.

    It gets a `Played` for each ``"turn"`` that it sends; ``"stop"`` ends the play, and is answered
    by the last.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    threading.stack_size(_STACK_BYTES)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
    notes, stop = _Notes(), threading.Event()
    logging.getLogger("hpo").addHandler(_Complaints(notes))
    storage = open_storage(orders.url)
    study_id = storage.get_study_id_from_name(STUDY)
    query = sa.select(sa.func.max(TRIALS.c.trial_id)).where(TRIALS.c.study_id == study_id)
    highest_id = storage.read(lambda c: c.execute(query).scalar_one())
    threads = []
    for number in range(orders.first, orders.first + orders.workers):
        worker = f"host{number}:{os.getpid()}#{number}"
        mine = _Timed(_with_own_pool(storage.rdb), worker, notes, study_id, highest_id)
        study = optuna.Study(
            STUDY, mine, sampler=optuna.samplers.RandomSampler(seed=number), pruner=_Looking()
        )
        loop = _loop(study, mine, orders, _Recorded(orders, number, stop))
        threads.append(threading.Thread(target=_work, args=(loop, notes)))
    for thread in threads:
        thread.start()
        stop.wait(random.uniform(0.0, 0.1))  # they do not all begin at once
    pipe.send("playing")
    while pipe.recv() != "stop":
        pipe.send(notes.turn())
    stop.set()
    for thread in threads:
        thread.join()
    pipe.send(notes.turn())


def _loop(study: optuna.Study, storage: _Timed, orders: Orders, work: _Recorded) -> Loop:
    def run(trial: optuna.Trial, watch: Watch) -> float:
        return work(trial, lambda: watch.storage.batch(trial._trial_id))

    return Loop(
        study=study,
        storage=storage,
        run=run,
        budget=Budget(),
        recovery=Recovery(
            heartbeat_s=orders.heartbeat_s / orders.compress,
            grace_s=orders.grace_s / orders.compress,
        ),
        display=_Silent(),
    )


def _work(loop: Loop, notes: _Notes) -> None:
    try:
        loop.work()
    except _OverError:
        return
    except Exception as error:
        notes.add(error=f"{type(error).__name__}: {error}"[:200])
    finally:
        loop.storage.engine.dispose()
