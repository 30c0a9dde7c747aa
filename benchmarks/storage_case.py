"""One case of `benchmarks.storage`: a database, a service, and so many workers.

A process loads the study once and runs one trial; the workers are its forks, so that nobody waits
for 32 loads of 10,000 trials, which real workers pay once in their lives.  Each worker opens
connections of its own.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier, Event

import optuna
import sqlalchemy as sa
from optuna.trial import TrialState

from hpo.storage.tables import TRIALS
from hpo.study.config import load_study_file

from .storage_services import SERVICES, Orders, Phase, Service, System

_CALM = 4.0  # workers that think keep the machine busy for about one part in so many
_MEET_S = 600.0  # for all workers to be there


@dataclass(frozen=True)
class Case:
    """What is measured, and for how long."""

    system: System
    storage: str
    stored: int
    workers: int
    url: str
    trials: int  # of each phase, of all workers together
    seconds: float  # of a phase, after which no trial begins
    think_s: float | None  # that a trial sleeps; None: so long that the machine is mostly idle


@dataclass(frozen=True)
class Measured:
    """A case's two phases: all workers flat out, and as idle as real ones."""

    flat: Phase
    calm: Phase  # one worker alone is calm anyway: its flat phase
    calm_workers: int  # the others sleep in the middle of a trial
    think_s: float
    errors: int


def measure(case: Case) -> Measured:
    """Measure a case, in a new process.

    Raises:
        RuntimeError: a trial was not finished exactly once.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as alone:
        return alone.submit(_measure, case).result()


def _measure(case: Case) -> Measured:
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    service = SERVICES[case.system](case.url, load_study_file("runes-default"))
    before = _count(service)
    phases = [service.run(Orders(until=sum(before.values()) + 1, share=1))]
    service.backend.remove_session()
    service.backend.engine.dispose()  # no connection may be shared with a fork
    gc.collect()
    gc.freeze()  # a collection would touch, and so copy, all memory in every fork

    def finished() -> int:
        return sum(before.values()) + sum(len(p.done) for p in phases)

    with _Crew(service, case.workers) as crew:
        orders = Orders(finished() + case.trials, share=case.trials, seconds=case.seconds)
        if case.system == "plain":  # which knows no budget that workers share
            orders = replace(orders, share=-(-case.trials // case.workers))
        flat = calm = crew.run(orders)
        phases.append(flat)
        think_s, active = _choose_think(case, flat)
        if think_s:
            share = -(-case.trials // active)
            until = finished() + active * share + case.workers
            calm, held = crew.run_some(Orders(until, share, case.seconds, think_s), active)
            phases += [calm, held]
    errors = sum(p.errors for p in phases)
    _check(case, before, _count(service), finished() - sum(before.values()), errors)
    return Measured(flat, calm, active, think_s, errors)


def _choose_think(case: Case, flat: Phase) -> tuple[float, int]:
    """Seconds that a trial shall sleep, and how many workers may run trials for that to be calm."""
    if case.think_s is not None:
        return case.think_s, case.workers
    if case.workers == 1 or not flat.done:
        return 0.0, case.workers
    each_s = (flat.done[-1].at - flat.started) / len(flat.done)
    active = max(1, min(case.workers, int(case.seconds / (_CALM * each_s))))
    return min(case.seconds, _CALM * each_s * active), active


class _Crew:
    """Workers, forked from this process when they are first needed."""

    def __init__(self, service: Service, size: int) -> None:
        fork = multiprocessing.get_context("fork")
        self._size = size
        self._release = fork.Event()
        self._pool = ProcessPoolExecutor(
            size,
            mp_context=fork,
            initializer=_become,
            initargs=(service, fork.Barrier(size), self._release),
        )

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._release.set()
        self._pool.shutdown()

    def run(self, orders: Orders) -> Phase:
        """All workers at once."""
        return self.run_some(orders, self._size)[0]

    def run_some(self, orders: Orders, active: int) -> tuple[Phase, Phase]:
        """So many workers, while each other one is in the middle of a trial and sleeps."""
        self._release.clear()
        # Each worker waits for all others, and so gets exactly one of these.
        some = [self._pool.submit(_run, orders) for _ in range(active)]
        one = replace(orders, share=1, think_s=0.0)
        others = [self._pool.submit(_hold, one) for _ in range(self._size - active)]
        phase = _merged([future.result() for future in some])
        self._release.set()
        return phase, _merged([future.result() for future in others])


# Of a worker's process.
_service: Service
_meeting: Barrier
_release: Event


def _become(service: Service, meeting: Barrier, release: Event) -> None:
    global _service, _meeting, _release
    _service, _meeting, _release = service, meeting, release
    service.become(f"worker {os.getpid()}")
    # Reading counts references, which copies the pages that a fork shares: not in a timed trial.
    for trial in service.study.get_trials(deepcopy=False):
        for held in (trial.params, trial.distributions, trial.intermediate_values):
            list(held.items())
        list(trial.system_attrs.items())


def _run(orders: Orders) -> Phase:
    _meeting.wait(_MEET_S)
    started = time.monotonic()
    time.sleep(random.uniform(0.0, orders.think_s))  # those that think do not start as one
    left_s = max(0.1, started + orders.seconds - time.monotonic())
    phase = _service.run(replace(orders, seconds=left_s))
    return replace(phase, started=started)


def _hold(orders: Orders) -> Phase:
    is_held = False

    def hold() -> None:
        nonlocal is_held
        is_held = True
        _meeting.wait(_MEET_S)
        _release.wait(_MEET_S)

    phase = _service.run(orders, hold)
    if not is_held:  # an error of the database came first
        _meeting.wait(_MEET_S)
    return phase


def _merged(phases: Sequence[Phase]) -> Phase:
    done = sorted((d for p in phases for d in p.done), key=lambda d: d.at)
    started = min((p.started for p in phases), default=0.0)
    return Phase(started, done, sum(p.errors for p in phases))


def _check(
    case: Case,
    before: dict[TrialState, int],
    after: dict[TrialState, int],
    done: int,
    errors: int,
) -> None:
    """Raises RuntimeError unless the database has the trials that the workers finished."""
    complete = after[TrialState.COMPLETE] - before[TrialState.COMPLETE]
    others = sum(after.values()) - sum(before.values()) - complete
    if complete != done or others > errors:
        raise RuntimeError(f"{case}: {done} trials, {errors} errors; {before} became {after}")


def _count(service: Service) -> dict[TrialState, int]:
    """Trials in the database by state.

    Raises:
        RuntimeError: two have the same number.
    """
    with service.backend.engine.connect() as c:
        numbers = c.execute(
            sa.select(sa.func.count(), sa.func.count(sa.distinct(TRIALS.c.number)))
        ).one()
        rows = c.execute(sa.select(TRIALS.c.state, sa.func.count()).group_by(TRIALS.c.state))
        counts = {state: int(n) for state, n in rows}
    if numbers[0] != numbers[1]:
        raise RuntimeError(f"{numbers[0]} trials have {numbers[1]} numbers")
    return {state: counts.get(state, 0) for state in TrialState}
