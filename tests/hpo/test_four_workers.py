"""Four real workers of one study, and what other processes ask of it meanwhile.

Each test is made on both kinds of databases, with whole workers of the cheap method.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpo.problem.base import digest_of
from hpo.storage.open import load_study, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.study.control import read_wishes
from hpo.trial.ranking import best_trials, is_feasible
from tests.cheap import CHEAP, CheapMethod
from tests.logged import LOG, calls_in
from tests.waiting import wait_for
from tests.watched import ENDED_LOG, SEEN_KEY, ended_in

if TYPE_CHECKING:
    from tests.conftest import Forked, Nursery, Process

REPO = Path(__file__).parents[2]
WORKERS = 4
BEST_LR = 0.01  # of the cheap method; no other recipe has a loss as low
STUDY = f"""
name = "s"
storage = "sqlite:///unused.db"
artifacts = "none"
[method]
name = "tests.logged:LoggedMethod"
[problem]
name = "{CHEAP["problem"]["name"]}"
[instances]
source = "drawn"
runes = ["r0", "r1"]
[pruner]
name = "none"
[sampler]
name = "tests.watched:WatchedSampler"
[callbacks]
after_trial = "tests.watched:write_down"
[fixed]
steps = 2
step_s = STEP_S
[recovery]
heartbeat_s = 0.5
grace_s = 5.0
[[start]]
lr = {BEST_LR}
[space.lr]
type = "float"
low = 1e-4
high = 0.9
"""


class Site:
    """A study, its database, and processes that work on it or ask something of it."""

    def __init__(self, url: str, nursery: Nursery, place: Path, ended: list[Process]) -> None:
        self.url, self._nursery, self._place, self._ended = url, nursery, place, ended
        self.file = place / "s.toml"
        self.calls, self.ends = place / "calls.log", place / "ends.log"

    def write(self, step_s: float) -> None:
        """Write the study file, whose calls take two steps each."""
        self.file.write_text(STUDY.replace("STEP_S", str(step_s)))

    def launch(self, command: str, *arguments: str) -> Forked:
        """Start a command on the study."""
        out, err = (self._place / f"{len(self._ended)}.{kind}" for kind in ("out", "err"))
        log = {LOG: str(self.calls), ENDED_LOG: str(self.ends)}
        environment = os.environ | {"PYTHONPATH": str(REPO), "RUNES_STORAGE": self.url} | log
        line = ["-m", f"hpo.{command}", "--study", str(self.file), *arguments]
        process = self._nursery.start(line, self._place, environment, out, err)
        self._ended.append(process)
        return process

    def ask(self, command: str, *arguments: str, code: int = 0) -> str:
        """Run a command on the study in a process of its own; returns what it printed.

        Of a command that fails, its errors.
        """
        process = self.launch(command, *arguments)
        printed, errors = process.communicate(120)
        assert process.returncode == code, errors
        return printed if code == 0 else errors

    def start_workers(self) -> list[Forked]:
        """Four, each of which is in the study when this returns."""
        line = ("worker", "--trials", "500", "--threads", "1")
        workers = [self.launch(*line) for _ in range(WORKERS)]
        wait_for(lambda: all(" study s: " in w.err.read_text() for w in workers))
        return workers

    @contextmanager
    def opened(self) -> Iterator[tuple[StudyStorage, optuna.Study]]:
        """The study as it is now, whoever changed it."""
        storage = open_storage(self.url)
        try:
            yield storage, load_study(storage, "s")
        finally:
            storage.engine.dispose()

    def trials(self) -> list[FrozenTrial]:
        with self.opened() as (_, study):
            return study.get_trials(deepcopy=False)

    def events(self) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = json.loads(self.ask("status", "--json"))["events"]
        return told


@pytest.fixture
def site(url: str, cheap_nursery: Nursery, tmp_path: Path, ended: list[Process]) -> Site:
    return Site(url, cheap_nursery, tmp_path, ended)


def worker_of(trial: FrozenTrial) -> str:
    return str(trial.user_attrs["worker"])


def of_each(trials: list[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """Finished trials by their worker, in the order in which it claimed them."""
    found: dict[str, list[FrozenTrial]] = {}
    finished = [t for t in trials if t.state.is_finished()]
    for trial in sorted(finished, key=lambda t: (t.datetime_start, t.number)):
        found.setdefault(worker_of(trial), []).append(trial)
    return found


def all_have_finished(trials: Callable[[], list[FrozenTrial]], least: int = 1) -> bool:
    """Whether each of the workers has finished so many of these trials."""
    by_worker = of_each(trials())
    return len(by_worker) == WORKERS and all(len(of) >= least for of in by_worker.values())


def ends_well(workers: list[Forked]) -> None:
    for worker in workers:
        said = worker.communicate(120)
        assert worker.returncode == 0, said


def test_what_is_queued_meanwhile_runs_once_by_whoever_claims_first(site: Site) -> None:
    site.write(step_s=0.1)
    workers = site.start_workers()
    wait_for(lambda: all_have_finished(site.trials))
    lrs = [0.31, 0.32, 0.33, 0.34, 0.35]
    askers = [site.launch("enqueue", f"lr={lr}") for lr in lrs]  # all at once
    ends_well(askers)

    def queued() -> list[FrozenTrial]:
        return [t for t in site.trials() if t.params.get("lr") in lrs]

    wait_for(lambda: sum(t.state == TrialState.COMPLETE for t in queued()) == len(lrs))
    # Nobody comes back to one later.
    last = max(t.number for t in site.trials())
    wait_for(lambda: all_have_finished(lambda: [t for t in site.trials() if t.number > last]))
    site.ask("stop")
    ends_well(workers)

    found, trials = queued(), site.trials()
    assert sorted(t.params["lr"] for t in found) == lrs
    assert [t.state for t in found] == [TrialState.COMPLETE] * len(lrs)
    assert not any(t.user_attrs.get("attempts") for t in found)
    # Each call was made once, by the one who has the trial.
    calls = Counter(calls_in(site.calls))
    for lr in lrs:
        recipe = CheapMethod().complete({"steps": 2, "step_s": 0.1, "lr": lr})
        made = [n for (digest, _), n in calls.items() if digest == digest_of(recipe)]
        assert made == [1, 1]
    ends = Counter(event["number"] for event in ended_in(site.ends))
    assert [ends[t.number] for t in found] == [1] * len(lrs)
    names = {event["worker"] for event in site.events() if event["what"] == "joined"}
    assert len(names) == WORKERS and {worker_of(t) for t in found} <= names
    # The next claim of anybody took it: nobody began a newer trial before.
    for trial in found:
        assert trial.datetime_start is not None
        newer = [t for t in trials if t.number > trial.number and t.datetime_start is not None]
        assert newer and all(trial.datetime_start <= t.datetime_start for t in newer)


def test_a_trial_that_is_dropped_meanwhile_is_nobodys_best_and_no_samplers(site: Site) -> None:
    site.write(step_s=0.15)  # a call is longer than workers go without a look at the controls
    workers = site.start_workers()

    def saw(trial: FrozenTrial, number: int) -> bool:
        return number in trial.system_attrs.get(SEEN_KEY, ())

    def all_saw_it() -> bool:
        seeing = {w for w, of in of_each(site.trials()).items() if any(saw(t, 0) for t in of)}
        return len(seeing) == WORKERS

    wait_for(all_saw_it)
    assert best_trials(site.trials(), 1)[0].number == 0
    site.ask("drop", "--trial", "0", "--why", "its drawings were wrong")
    since = len(site.trials())

    def later() -> list[FrozenTrial]:
        return [t for t in site.trials() if t.number >= since]

    wait_for(lambda: all_have_finished(later))
    # Better than all but what was dropped.
    site.ask("enqueue", f"lr={BEST_LR + 1e-4}")

    def second() -> FrozenTrial | None:
        of = [t for t in later() if t.params.get("lr") == BEST_LR + 1e-4]
        return of[0] if of and of[0].state.is_finished() else None

    wait_for(second)
    wait_for(lambda: all_have_finished(later, least=3))
    site.ask("stop")
    ends_well(workers)

    best = second()
    assert best is not None
    for of in of_each(later()).values():
        # A worker may have claimed the first one between its look at the controls and the drop.
        assert not any(saw(t, 0) for t in of[1:])
        assert all(SEEN_KEY in t.system_attrs for t in of if t.number != best.number)
    # The worker that ended it knew that it is the best now.
    (event,) = [e for e in ended_in(site.ends) if e["number"] == best.number]
    assert event["is_best"]
    trials = site.trials()
    assert not is_feasible(trials[0]) and trials[0].state == TrialState.COMPLETE
    assert best_trials(trials, 1)[0].number == best.number
    told = json.loads(site.ask("status", "--json"))
    assert told["best"][0]["trial"] == best.number and told["dropped"] == [0]
    assert 0 not in [one["trial"] for one in told["best"]]


def test_a_running_trial_is_not_dropped_and_each_worker_tells_how_it_ended(site: Site) -> None:
    site.write(step_s=60.0)  # nothing finishes
    workers = site.start_workers()
    wait_for(lambda: len(calls_in(site.calls)) == WORKERS)
    said = site.ask("drop", "--trial", "2", "--why", "x", code=2)
    assert "trial 2 is running; drop it when it is finished" in said
    with site.opened() as (storage, study):
        assert read_wishes(storage, study._study_id).controls == ()
        assert all(t.state == TrialState.RUNNING and is_feasible(t) for t in study.get_trials())
        holds = {b.worker: b.number for b in storage.heartbeats(study._study_id)}

    killed, *others = workers
    killed.kill()
    wait_for(lambda: any(e["what"] == "lost" and "queued" in e["reason"] for e in site.events()))
    for worker, number in zip(others, (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT), strict=True):
        worker.send_signal(number)
    for worker, code in zip(others, (0, 0, 130), strict=True):
        assert worker.wait(60) == code
    events = site.events()
    assert Counter(e["what"] for e in events) == {"joined": WORKERS, "ended": 3, "lost": 1}
    assert {e["process"] for e in events if e["what"] == "joined"} == {w.pid for w in workers}
    (lost,) = [e for e in events if e["what"] == "lost"]
    assert lost["process"] == killed.pid and lost["trial"] == holds[lost["worker"]]
    assert lost["host"] == os.uname().nodename and lost["at"] is not None
    ends = {e["process"]: (e["why"], e["reason"]) for e in events if e["what"] == "ended"}
    names = ("SIGTERM", "SIGUSR1", "SIGINT")
    assert ends == {
        worker.pid: ("interrupted", name) for worker, name in zip(others, names, strict=True)
    }
    text = site.ask("status")
    assert f"event       {lost['worker']} was lost with trial {lost['trial']} at " in text
