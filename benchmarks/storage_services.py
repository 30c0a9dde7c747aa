"""What `benchmarks.storage` compares: this service's loop, and Optuna's, each in one process."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from typing import Literal, cast

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage

from hpo.arguments import LARGEST_NUMBER
from hpo.pruners.registry import make_pruner
from hpo.samplers.registry import make_sampler
from hpo.storage.open import load_study, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.storage.url import parse_url
from hpo.study.config import Budget, StudyConfig
from hpo.worker.display import Display
from hpo.worker.loop import Loop, Watch

from .storage_fill import STUDY, TrialWork, plain_objective

System = Literal["ours", "plain"]
_ERRORS = (optuna.exceptions.StorageInternalError, sa.exc.OperationalError)


@dataclass(frozen=True)
class Orders:
    """What a worker shall do."""

    until: int  # trials that the study has finished in the end, where workers share a budget
    share: int  # trials of this worker, at most
    seconds: float = LARGEST_NUMBER  # after which it begins none
    think_s: float = 0.0  # that a trial sleeps, on average


@dataclass(frozen=True)
class Done:
    """A finished trial."""

    at: float  # of the monotonic clock, which all processes share
    latency_s: float  # from before the claim until after the finish, less the sleep


@dataclass
class Phase:
    """What came of some orders."""

    started: float
    done: list[Done]
    errors: int = 0  # trials that ended in an error of the database


class Service:
    """Runs trials of a study that it has read."""

    def __init__(self, study: optuna.Study, config: StudyConfig) -> None:
        self.study = study
        self.config = config
        study.get_trials(deepcopy=False)

    @property
    def backend(self) -> RDBStorage:
        """Optuna's storage of the database."""
        storage = self.study._storage
        if isinstance(storage, StudyStorage):
            return storage.rdb
        return cast(_CachedStorage, storage)._backend

    def become(self, worker: str) -> None:
        """Be another worker than the process that this one was forked from."""
        self.study.sampler.reseed_rng()

    def run(self, orders: Orders, pause: Callable[[], None] | None = None) -> Phase:
        """Run trials; ``pause`` is called in the middle of each."""
        raise NotImplementedError


class Ours(Service):
    """The service's own loop."""

    def __init__(self, url: str, config: StudyConfig) -> None:
        self._storage = open_storage(url, worker="first")
        sampler = make_sampler(config.sampler, seed=0)
        pruner = make_pruner(config.pruner)
        super().__init__(load_study(self._storage, STUDY, sampler, pruner), config)

    def become(self, worker: str) -> None:
        super().become(worker)
        self._storage.worker = worker

    def run(self, orders: Orders, pause: Callable[[], None] | None = None) -> Phase:
        work = TrialWork(self.config, orders.think_s, os.getpid(), pause)

        def objective(trial: optuna.Trial, watch: Watch) -> float:
            return work(trial, lambda: watch.storage.batch(trial._trial_id))

        stopwatch = _Stopwatch(work, orders.share)
        loop = Loop(
            study=self.study,
            storage=self._storage,
            run=objective,
            budget=Budget(trials=orders.until, seconds=orders.seconds),
            recovery=self.config.recovery,
            display=stopwatch,
            feasible_s=self.config.feasible_s,
        )
        with suppress(_EnoughError):
            loop.work()
        return Phase(stopwatch.started, stopwatch.done)


class _EnoughError(Exception):
    """The worker's share is done."""


class _Stopwatch(Display):
    """Times the rounds of a loop, which shows the study whenever one begins."""

    def __init__(self, work: TrialWork, share: int) -> None:
        with redirect_stderr(io.StringIO()):  # no terminal: the workers would share it
            super().__init__(STUDY, None, 0)
        self.started = self._round = time.monotonic()
        self.done: list[Done] = []
        self._work = work
        self._share = share

    def show_study(self, trials: object) -> None:
        now = time.monotonic()
        slept_s = self._work.slept_s
        if slept_s is not None:  # the round had a trial
            self.done.append(Done(now, now - self._round - slept_s))
            self._work.slept_s = None
        if len(self.done) >= self._share:
            raise _EnoughError
        self._round = now


class Plain(Service):
    """Optuna's loop on Optuna's storage, all by default but the sampler's and pruner's options."""

    def __init__(self, url: str, config: StudyConfig) -> None:
        study = optuna.create_study(
            storage=parse_url(url).render_as_string(hide_password=False),
            study_name=STUDY,
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(
                n_startup_trials=config.sampler.startup_trials,
                multivariate=True,
                group=True,
                seed=0,
            ),
            pruner=make_pruner(config.pruner),
        )
        super().__init__(study, config)

    def run(self, orders: Orders, pause: Callable[[], None] | None = None) -> Phase:
        work = TrialWork(self.config, orders.think_s, os.getpid(), pause)
        objective = plain_objective(work, self.config)
        phase = Phase(time.monotonic(), [])
        for _ in range(orders.share):
            began = time.monotonic()
            if began - phase.started >= orders.seconds:
                break
            try:
                self.study.optimize(objective, n_trials=1)
            except _ERRORS:  # "database is locked", where many write to a file
                phase.errors += 1
                continue
            now = time.monotonic()
            phase.done.append(Done(now, now - began - (work.slept_s or 0.0)))
        return phase


SERVICES: dict[System, type[Ours] | type[Plain]] = {"ours": Ours, "plain": Plain}
