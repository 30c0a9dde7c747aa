"""Workers as real processes: many at once, killed in every way, on both kinds of databases."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from optuna.trial import FrozenTrial, TrialState

from benchmarks.postgres import PASSWORD, Postgres
from hpo.errors import EXIT_BAD_INPUT, EXIT_DATABASE_AWAY
from hpo.storage.open import load_study, open_storage
from hpo.trial.record import read_trial
from tests.waiting import wait_for

if TYPE_CHECKING:
    from tests.conftest import Nursery, Process

REPO = Path(__file__).parents[3]
SCRIPT = str(Path(__file__).parents[1] / "cheap_worker.py")
QUICK = ("heartbeat_s=0.4", "grace_s=1.5")

Start = Callable[..., "Process"]


@pytest.fixture
def start(launch: Start, cheap_nursery: Nursery) -> Start:
    """Starts a cheap worker; its lines go to a file of its own."""

    def start(url: str, trials: int, *options: str) -> Process:
        return launch([SCRIPT, url, str(trials), *options], cheap_nursery)

    return start


def lines_of(process: Process) -> str:
    return str(process.log_path.read_text())  # type: ignore[union-attr]


def ends_well(processes: list[Process], timeout_s: float = 120.0) -> None:
    for process in processes:
        assert process.wait(timeout_s) == 0, lines_of(process)


def trials_of(url: str) -> list[FrozenTrial]:
    return load_study(open_storage(url), "cheap").get_trials(deepcopy=False)


def states(trials: list[FrozenTrial]) -> dict[TrialState, int]:
    return {s: n for s in TrialState if (n := sum(t.state == s for t in trials))}


def test_eight_workers_started_together_finish_exactly_the_budget(
    start: Start, empty_url: str
) -> None:
    workers = [start(empty_url, 120) for _ in range(8)]
    ends_well(workers)
    trials = trials_of(empty_url)
    assert states(trials) == {TrialState.COMPLETE: 120}
    assert sorted(t.number for t in trials) == list(range(120))
    # The first round is of eight recipes, and so is every other: no two workers think alike.
    assert len({t.params["lr"] for t in trials}) == 120
    # On a busy machine one may start so late that nothing is left.
    assert len({t.user_attrs["worker"] for t in trials}) >= 4

    ends_well([start(empty_url, 123) for _ in range(3)])  # a resume with a larger budget
    ends_well([start(empty_url, 123)])  # and one with nothing left to do
    assert states(trials_of(empty_url)) == {TrialState.COMPLETE: 123}


def test_the_first_workers_place_decides_its_seed(
    launch: Start, new_database: Callable[[str], str]
) -> None:
    urls = [new_database("sqlite"), new_database("sqlite")]
    # Of no nursery, whose processes have their hashes' secret in common.
    ends_well([launch([SCRIPT, url, "5"]) for url in urls])
    first, second = ([t.params["lr"] for t in trials_of(url)] for url in urls)
    assert first == second


def test_workers_killed_at_random_lose_nothing(
    start: Start, new_database: Callable[[str], str]
) -> None:
    budget, queued = 150, [round(0.01 + 0.001 * i, 3) for i in range(40)]
    queue = "start=" + ",".join(map(str, queued))
    urls = [new_database("sqlite"), new_database("postgresql")]
    options = (queue, *QUICK, "retries=2")
    workers = {url: [start(url, budget, *options, "step_s=0.5") for _ in range(3)] for url in urls}
    rng = random.Random(11)
    killed = 0
    deadline = time.monotonic() + 300
    while killed < 40:
        assert time.monotonic() < deadline
        time.sleep(rng.uniform(0.1, 0.6))
        url = rng.choice(urls)
        alive = [w for w in workers[url] if w.poll() is None and "running" in lines_of(w)]
        if alive:
            victim = rng.choice(alive)
            victim.kill()
            victim.wait()
            killed += 1
        if sum(w.poll() is None for w in workers[url]) < 3:
            workers[url].append(start(url, budget, *options, "step_s=0.5"))
    # Quick ones do what is left, beside those that live.
    for url in urls:
        workers[url] += [start(url, budget, *options, "step_s=0.02") for _ in range(2)]
    for url in urls:
        survivors = [w for w in workers[url] if w.poll() is None]
        ends_well(survivors)
        trials = trials_of(url)
        finished = [t for t in trials if t.state.is_finished()]
        assert len(finished) == budget
        assert states(trials).keys() <= {TrialState.COMPLETE, TrialState.FAIL}
        assert sorted(t.number for t in trials) == list(range(budget))
        for trial in trials:
            if trial.state == TrialState.FAIL:
                assert trial.user_attrs["outcome"] == "lost worker"
                assert [a.lost for a in read_trial(trial).attempts] == 3 * [True]
                assert read_trial(trial).remarks == ()
            else:
                assert list(trial.intermediate_values) == [1, 2]
                assert trial.value == trial.params["lr"]
                assert len(trial.user_attrs.get("attempts", [])) <= 2
        assert any("attempts" in t.user_attrs for t in trials)
        # Each queued recipe is one trial, finished once.
        fixed = [t.system_attrs["fixed_params"]["lr"] for t in trials[: len(queued)]]
        assert fixed == queued
        assert all(t.params.get("lr", x) == x for t, x in zip(trials, queued, strict=False))


def test_a_server_that_restarts_and_stays_away_costs_nobody_anything(
    start: Start, postgres: Postgres
) -> None:
    url = postgres.create("restarts")
    options = ("step_s=0.2", "reports=5", "heartbeat_s=1", "grace_s=5")
    workers = [start(url, 21, *options) for _ in range(3)]
    for away_s in (0, 1, 7):  # the last for longer than the grace
        began = [lines_of(w).count("running") for w in workers]
        wait_for(
            lambda began=began: all(
                lines_of(w).count("running") > n for w, n in zip(workers, began, strict=True)
            )
        )
        postgres.stop()
        time.sleep(away_s)
        postgres.start()
    ends_well(workers)
    trials = trials_of(url)
    assert states(trials) == {TrialState.COMPLETE: 21}
    reports = {t.number: list(t.intermediate_values) for t in trials}
    assert reports == {number: [1, 2, 3, 4, 5] for number in range(21)}
    # Nobody was called lost: each trial is its first attempt.
    assert not any("attempts" in t.user_attrs for t in trials)
    told = "".join(lines_of(w) for w in workers)
    assert "trying again in" in told
    assert "answers again after" in told
    assert "a-password" not in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"],
)
def test_a_signal_hands_the_trial_back_and_another_worker_finishes_it(
    start: Start, url: str, number: signal.Signals, code: int
) -> None:
    slow = start(url, 1, "step_s=60")
    wait_for(lambda: "running 0" in lines_of(slow))
    asked = time.monotonic()
    slow.send_signal(number)
    assert slow.wait(10) == code
    assert time.monotonic() - asked < 5
    assert "trial 0: queued again" in lines_of(slow)
    assert "Traceback" not in lines_of(slow)
    (waiting,) = trials_of(url)
    assert waiting.state == TrialState.WAITING
    ends_well([start(url, 1)])
    (done,) = trials_of(url)
    assert (done.state, done.params) == (TrialState.COMPLETE, waiting.params)
    assert done.user_attrs["attempts"][0]["why"] == "stopped"


def test_a_second_signal_ends_a_worker_at_once(start: Start, postgres: Postgres) -> None:
    url = postgres.create("second_signal")
    slow = start(url, 1, "step_s=60", "heartbeat_s=30", "grace_s=90")
    wait_for(lambda: "running 0" in lines_of(slow))
    postgres.stop()
    try:
        slow.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert slow.poll() is None  # it would hand back its trial, to a server that is away
        slow.send_signal(signal.SIGTERM)
        assert slow.wait(3) == 128 + signal.SIGTERM
    finally:
        postgres.start()


def test_sigusr1_and_sigterm_together_ask_once(start: Start, postgres: Postgres) -> None:
    # A batch system signals a script, which passes it on, and each of its processes.
    url = postgres.create("ask_once")
    slow = start(url, 1, "step_s=60", "heartbeat_s=30", "grace_s=90")
    wait_for(lambda: "running 0" in lines_of(slow))
    postgres.stop()  # so that it takes a while to end
    try:
        slow.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        slow.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        slow.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        assert slow.poll() is None
        slow.send_signal(signal.SIGTERM)
        assert slow.wait(3) == 128 + signal.SIGTERM
    finally:
        postgres.start()


def test_a_signal_while_the_server_is_away_still_ends_a_worker(
    start: Start, postgres: Postgres
) -> None:
    url = postgres.create("signal_away")
    slow = start(url, 1, "step_s=60", "heartbeat_s=30", "grace_s=90")
    wait_for(lambda: "running 0" in lines_of(slow))
    postgres.stop()
    try:
        slow.send_signal(signal.SIGTERM)
        assert slow.wait(10) == 0
        assert "could not be released, and will count as lost" in lines_of(slow)
    finally:
        postgres.start()


def test_a_trial_that_someone_else_ended_does_not_end_its_worker(start: Start, url: str) -> None:
    worker = start(url, 3, "step_s=0.5", "reports=3", *QUICK)
    wait_for(lambda: "running 0" in lines_of(worker))
    storage = open_storage(url, worker="")  # a person
    trial_id = load_study(storage, "cheap").trials[0]._trial_id
    storage.set_trial_state_values(trial_id, TrialState.FAIL)
    ends_well([worker])
    assert "trial 0: the trial was ended or taken over by someone else" in lines_of(worker)
    trials = trials_of(url)
    assert states(trials) == {TrialState.FAIL: 1, TrialState.COMPLETE: 2}


def test_a_frozen_workers_trial_goes_on_elsewhere_and_the_sleeper_lets_go(
    start: Start, url: str
) -> None:
    sleeper = start(url, 2, "step_s=1.5", "reports=2", *QUICK)
    wait_for(lambda: "running 0" in lines_of(sleeper))
    sleeper.send_signal(signal.SIGSTOP)
    rescuer = start(url, 2, "step_s=0.1", *QUICK)
    wait_for(lambda: "is lost" in lines_of(rescuer))
    wait_for(lambda: "running 0" in lines_of(rescuer))
    sleeper.send_signal(signal.SIGCONT)
    ends_well([sleeper, rescuer])
    first, _ = trials_of(url)
    assert first.state == TrialState.COMPLETE
    assert first.user_attrs["worker"].split(":")[1].startswith(f"{rescuer.pid}#")
    assert "taken over by someone else" in lines_of(sleeper)


def test_a_terminal_shows_the_study_and_its_trial_and_a_file_only_lines(
    start: Start, new_database: Callable[[str], str]
) -> None:
    ends_well([quiet := start(new_database("sqlite"), 3)])
    assert "\r" not in lines_of(quiet)
    assert all(line[:4].isdigit() for line in lines_of(quiet).splitlines())  # each has its date

    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    worker = subprocess.Popen(
        [sys.executable, SCRIPT, new_database("sqlite"), "4", "step_s=0.6"],
        stderr=theirs,
        stdout=theirs,
        env=dict(os.environ, PYTHONPATH=str(REPO), COLUMNS="120"),
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's end, on Linux
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert worker.wait(30) == 0
    text = shown.decode()
    assert "cheap: 100%" in text
    assert "4/4" in text
    assert "best 0." in text
    assert "trial 2, part 1" in text
    assert "50 %, loss 0." in text


def test_a_worker_that_measures_something_else_may_not_join(start: Start, url: str) -> None:
    ends_well([start(url, 1, "measures=this")])
    other = start(url, 2, "measures=that")
    assert other.wait(30) == 2
    (line,) = lines_of(other).splitlines()
    assert line.startswith(
        "error: study cheap was made with other measures (this there, that here)"
    )
    assert "start_from" in line


def test_a_worker_that_is_not_let_in_says_one_line_and_what_may_help(
    start: Start, postgres: Postgres, new_database: Callable[[str], str]
) -> None:
    url, newer = postgres.create("not_let_in"), new_database("sqlite")
    path = newer.removeprefix("sqlite:///")
    open_storage(newer)
    with contextlib.closing(sqlite3.connect(path)) as c:
        c.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
        c.commit()
    readable = new_database("sqlite")
    open_storage(readable)
    read_only = f"sqlite:///file:{readable.removeprefix('sqlite:///')}?mode=ro&uri=true"
    for bad, words, code in [
        (url.replace(PASSWORD, "wrong"), "password authentication failed", EXIT_BAD_INPUT),
        (
            url.replace("127.0.0.1", "no-such-host.invalid"),
            "check host and port",
            EXIT_DATABASE_AWAY,
        ),
        (newer, "install that release", EXIT_BAD_INPUT),
        (read_only, "readonly database", EXIT_BAD_INPUT),
    ]:
        worker = start(bad, 1)
        assert worker.wait(30) == code
        (line,) = lines_of(worker).splitlines()
        assert line.startswith("error: ")
        assert words in line
        assert PASSWORD not in line


def test_a_disk_that_is_full_in_the_middle_ends_a_worker_with_one_line_and_2(
    start: Start, new_database: Callable[[str], str]
) -> None:
    url = new_database("sqlite")
    open_storage(url)
    worker = start(url, 9, "fill_at=1")
    assert worker.wait(30) == 2
    assert "database or disk is full; free space on its disk" in lines_of(worker).splitlines()[-1]
    assert "Traceback" not in lines_of(worker)


def test_an_all_but_empty_budget_ends_even_when_the_last_trial_is_lost(
    start: Start, url: str
) -> None:
    doomed = start(url, 1, "step_s=60", *QUICK)
    wait_for(lambda: "running 0" in lines_of(doomed))
    waiting = start(url, 1, "step_s=0.05", *QUICK)
    wait_for(lambda: "waiting: " in lines_of(waiting))
    doomed.kill()
    ends_well([waiting])
    (trial,) = trials_of(url)
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["attempts"][0]["why"] == "lost worker"
