"""What a worker stores of its own end, for each way to end, in both kinds of databases."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpo.errors import UserError
from hpo.process.signals import StopError
from hpo.storage.open import load_study, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.study.config import Budget, Recovery
from hpo.study.control import ask
from hpo.study.workers import End, WorkerEntry, entries_in
from hpo.worker.display import Display
from hpo.worker.loop import Loop, Watch, WorkerFailedError

Run = Callable[[optuna.Trial, Watch], float]


def measure(trial: optuna.Trial, watch: Watch) -> float:
    watch.between_calls()
    return trial.suggest_float("x", 0.0, 1.0)


def stop_all(trial: optuna.Trial, watch: Watch) -> float:
    study_id = trial.study._study_id
    ask(open_storage(str(watch.storage.engine.url.render_as_string(False))), study_id, "stop")
    watch.controls._looked_at = 0.0  # type: ignore[union-attr]  # look again now
    watch.between_calls()
    raise AssertionError


def raises(error: BaseException) -> Run:
    def run(trial: optuna.Trial, watch: Watch) -> float:
        raise error

    return run


@pytest.fixture
def storage(url: str) -> StudyStorage:
    storage = open_storage(url, worker="host:77#0")
    storage.create_study("s", {}, [])
    return storage


def work(storage: StudyStorage, run: Run, budget: Budget) -> WorkerEntry:
    """The entry of a worker that has ended."""
    study = load_study(storage, "s", optuna.samplers.RandomSampler(seed=0))
    storage.identify(study._study_id)
    with Display("s", None, 0) as display:
        loop = Loop(study, storage, run, budget, Recovery(failures=2), display)
        with suppress(KeyboardInterrupt, UserError, WorkerFailedError):
            loop.work()
    entries, remarks = entries_in(study.user_attrs)
    assert remarks == []
    assert list(entries) == ["host:77#0"]
    return entries["host:77#0"]


ENDS: list[tuple[Run, dict[str, Any], End, str]] = [
    (measure, {"trials": 2}, End.FINISHED, "2 trials are finished"),
    (measure, {"target": 1.0}, End.BUDGET, "trial 0 reached"),
    (measure, {"seconds": 1e-9}, End.LIMIT, "1e-09 s of this worker's time are over"),
    (stop_all, {}, End.STOPPED, "stopped the study at"),
    (raises(StopError(signal.SIGTERM)), {}, End.INTERRUPTED, "SIGTERM"),
    (raises(KeyboardInterrupt()), {}, End.INTERRUPTED, "KeyboardInterrupt"),
    (raises(ValueError("no")), {}, End.FAILED, "2 trials in a row failed, the last of"),
    (raises(UserError("no\nroom")), {}, End.ERROR, "no"),
]


@pytest.mark.parametrize(
    ("run", "budget", "why", "reason"),
    ENDS,
    ids=["finished", "budget", "limit", "stop", "signal", "interrupt", "failures", "error"],
)
def test_each_end_is_stored_with_its_reason(
    storage: StudyStorage, run: Run, budget: dict[str, Any], why: End, reason: str
) -> None:
    before = datetime.now(UTC)
    entry = work(storage, run, Budget(**budget))
    assert entry.joined is not None and entry.ended is not None
    assert abs((entry.joined - before).total_seconds()) < 60
    assert entry.joined <= entry.ended <= datetime.now(UTC)
    assert entry.why == why.value
    assert reason in entry.reason and "\n" not in entry.reason
    trials = load_study(storage, "s").get_trials()
    assert not any(t.state == TrialState.RUNNING for t in trials)


def test_a_study_that_is_gone_gets_no_row(
    storage: StudyStorage, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In SQLite the next study has its id."""

    def replace(trial: optuna.Trial, watch: Watch) -> float:
        optuna.delete_study(study_name="s", storage=open_storage(url, worker=""))
        open_storage(url).create_study("s", {}, [])
        raise StopError(signal.SIGTERM)

    study = load_study(storage, "s")
    storage.identify(study._study_id)
    with Display("s", None, 0) as display, pytest.raises(StopError):
        Loop(study, storage, replace, Budget(), Recovery(), display).work()
    assert load_study(open_storage(url), "s").user_attrs == {}
