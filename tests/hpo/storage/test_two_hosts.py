"""Workers on two hosts, joined to the database's by cables that can be cut.

The hosts are network namespaces that the tests make; where that is not allowed they are skipped,
with the reason.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from optuna.trial import TrialState

from benchmarks.hosts import NETWORK, Switch
from benchmarks.postgres import PASSWORD, Postgres
from hpo.storage.open import load_study, open_storage
from tests.waiting import wait_for

if TYPE_CHECKING:
    from tests.conftest import Forked, Nurse, Process

MODULES = (
    "hpo.worker.loop",
    "hpo.worker.display",
    "hpo.study.create",
    "alembic.command",
    "alembic.ddl",
    "psycopg",
)
CUT_S = 30
BUDGET = 60
PATIENCE_S = 300  # with a machine that others use


@pytest.fixture(scope="module")
def switch() -> Iterator[Switch]:
    try:
        switch = Switch(hosts=3)
    except OSError as error:
        pytest.skip(f"network namespaces are not allowed here: {error}")
    with switch:
        yield switch


@pytest.fixture(scope="module")
def server(switch: Switch) -> Iterator[Postgres]:
    """A PostgreSQL on the switch, which this process reaches by a socket file only."""
    with Postgres(within=switch.within(None), network=NETWORK, quick=True) as server:
        yield server


Begin = Callable[..., "Forked"]
Start = Callable[..., "Forked"]


@pytest.fixture(scope="module")
def begin(switch: Switch, nurse: Nurse) -> Begin:
    """Starts Python on a host; what it says goes to a file."""

    def begin(host: int, log: Path, *arguments: str) -> Forked:
        nursery = nurse(MODULES, within=tuple(switch.within(host)))
        return nursery.start(arguments, Path.cwd(), os.environ, log, log)

    return begin


@pytest.fixture
def start(begin: Begin, tmp_path: Path, ended: list[Process]) -> Start:
    """The same with a file of its own, and it is ended in the end."""

    def start(host: int, *arguments: str) -> Forked:
        process = begin(host, tmp_path / f"{len(ended)}.log", *arguments)
        ended.append(process)
        return process

    return start


def said(process: Forked) -> str:
    return process.err.read_text()


def told_at(process: Forked, words: str) -> datetime:
    """The date of the line with these words."""
    (line,) = (line for line in said(process).splitlines() if words in line)
    return datetime.fromisoformat(line[:19])


def done_by(worker: Forked) -> int:
    """Trials that the worker has finished."""
    return said(worker).count(": complete")


def url_for(server: Postgres, database: str, host: int) -> str:
    """The database's URL as a host has to write it."""
    return server.url(database, f"10.77.{host}.1")


def here(server: Postgres, database: str) -> str:
    """The database's URL for this process."""
    return (
        server.url(database, "").replace(f"@:{server.port}", "@")
        + f"?host={server.directory}&port={server.port}"
    )


CHEAP = str(Path(__file__).parents[1] / "cheap_worker.py")
HOLD = """
import sys, time
from hpo.storage import transactions
from hpo.storage.open import load_study, open_storage
storage = open_storage(sys.argv[1])
with storage.transaction() as c:
    transactions.join(c, load_study(storage, "cheap")._study_id)
    print("held", flush=True)
    time.sleep(600)
"""


@dataclass(frozen=True)
class Vanished:
    """A host that went with the study's lock, and a worker that came when it was gone."""

    worker: Forked
    began: datetime


@pytest.fixture(scope="module")
def vanished(
    server: Postgres, switch: Switch, begin: Begin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Vanished]:
    """While the server finds out, the other test runs."""
    folder = tmp_path_factory.mktemp("vanished")
    server.create("held")
    first = begin(1, folder / "first", CHEAP, url_for(server, "held", 1), "2")
    assert first.wait(PATIENCE_S) == 0, said(first)
    holder = begin(3, folder / "holder", "-c", HOLD, url_for(server, "held", 3))
    wait_for(lambda: "held" in said(holder))
    switch.cut(3)
    began = datetime.now()
    worker = begin(1, folder / "worker", CHEAP, url_for(server, "held", 1), "4")
    yield Vanished(worker, began)
    for process in (holder, worker):
        process.kill()
        process.wait()
    switch.mend(3)


def test_a_link_that_is_cut_for_30_s_loses_nothing(
    server: Postgres, switch: Switch, start: Start, vanished: Vanished
) -> None:
    # Two studies at once: one whose workers bear the silence, one whose workers call others lost.
    teams = {}
    for grace_s in (90, 6):
        server.create(f"cut_{grace_s}")
        options = ("step_s=0.4", "reports=5", f"heartbeat_s={grace_s / 6:g}", f"grace_s={grace_s}")
        teams[grace_s] = [
            start(host, CHEAP, url_for(server, f"cut_{grace_s}", host), str(BUDGET), *options)
            for host in (1, 2, 1, 2)
        ]
    workers = [worker for team in teams.values() for worker in team]
    near, away = workers[::2], workers[1::2]
    wait_for(lambda: all("complete" in said(w) for w in workers))
    switch.cut(2)
    try:
        time.sleep(1)  # answers that were on their way
        before = {w: done_by(w) for w in workers}
        time.sleep(CUT_S - 1)
        assert [done_by(w) for w in away] == [before[w] for w in away]  # it was cut
        assert all(done_by(w) > before[w] for w in near)
    finally:
        switch.mend(2)
    for worker in workers:
        assert worker.wait(PATIENCE_S) == 0, said(worker)
        assert PASSWORD not in said(worker)
        assert "Traceback" not in said(worker)
    assert all(done_by(w) > before[w] for w in away)  # they worked on afterwards
    for grace_s, team in teams.items():
        storage = open_storage(here(server, f"cut_{grace_s}"))
        trials = load_study(storage, "cheap").get_trials(deepcopy=False)
        assert {t.state for t in trials} == {TrialState.COMPLETE}
        assert sorted(t.number for t in trials) == list(range(BUDGET))
        assert all(list(t.intermediate_values) == [1, 2, 3, 4, 5] for t in trials)
        assert all(t.value == t.params["lr"] for t in trials)
        attempts = [t.user_attrs["attempts"] for t in trials if "attempts" in t.user_attrs]
        if grace_s > CUT_S:
            assert attempts == []  # nobody was called lost
        else:
            assert attempts
            assert all(a["why"] == "lost worker" for known in attempts for a in known)
            assert any("taken over by someone else" in said(w) for w in team[1::2])


def test_a_host_that_vanishes_with_the_studys_lock_stops_nobody_for_long(
    server: Postgres, vanished: Vanished
) -> None:
    worker = vanished.worker
    assert worker.wait(PATIENCE_S) == 0, said(worker)
    # To join takes the lock, for which it waited.
    assert (told_at(worker, " joined") - vanished.began).total_seconds() > 8
    # The server finds out after 30 s; by its own defaults it would take two hours.
    assert (told_at(worker, " done: ") - vanished.began).total_seconds() < 120
    trials = load_study(open_storage(here(server, "held")), "cheap").trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 4
