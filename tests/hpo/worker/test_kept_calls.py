"""No call is made twice: trials go on at their first missing call, and others read what was made.

Workers are real processes, and databases are real ones.
"""

from __future__ import annotations

import gzip
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from benchmarks.postgres import Postgres
from hpo.status import main as status
from hpo.storage.calls import CALLS, CallRow
from hpo.storage.open import load_study, open_storage
from hpo.study.budget import compute_seconds
from hpo.trial.record import read_trial
from tests.cheap import CHEAP
from tests.logged import LOG, calls_in

if TYPE_CHECKING:
    from tests.conftest import Forked, Nursery, Process

REPO = Path(__file__).parents[3]
N_CALLS = 4  # of a trial
STUDY = f"""
name = "s"
storage = "sqlite:///unused.db"
[method]
name = "tests.logged:LoggedMethod"
[problem]
name = "{CHEAP["problem"]["name"]}"
[instances]
source = "drawn"
runes = ["r"]
seeds = [0, 1, 2, 3]
[pruner]
name = "none"
[sampler]
name = "random"
[fixed]
steps = 3
step_s = STEP_S
[recovery]
heartbeat_s = 0.3
grace_s = 1.0
retries = 50
[space.lr]
type = "float"
low = 1e-4
high = 1e-2
"""
Start = Callable[..., "Forked"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "calls.log"


@pytest.fixture
def start(cheap_nursery: Nursery, tmp_path: Path, log: Path, ended: list[Process]) -> Start:
    """Starts a worker on a study of this text, and ends it in the end if it has not."""

    def start(url: str, text: str, trials: int) -> Forked:
        out, err, study = (tmp_path / f"{len(ended)}.{kind}" for kind in ("out", "err", "toml"))
        study.write_text(text)
        arguments = ["-m", "hpo.worker", "--study", str(study), "--trials", str(trials)]
        variables = {"RUNES_STORAGE": url, "RUNES_ARTIFACTS": "none", LOG: str(log)}
        environment = os.environ | {"PYTHONPATH": str(REPO)} | variables
        process = cheap_nursery.start(arguments, tmp_path, environment, out, err)
        ended.append(process)
        return process

    return start


def study(step_s: float = 0.0, text: str = STUDY) -> str:
    return text.replace("STEP_S", str(step_s))


def ends_well(*processes: Forked) -> str:
    """What they logged."""
    said = [process.communicate(120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return "".join(said)


def trials_of(url: str, name: str = "s") -> list[FrozenTrial]:
    return load_study(open_storage(url), name).get_trials(deepcopy=False)


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def measured(trial: FrozenTrial) -> list[tuple[str, float, float | None]]:
    """What a trial's calls say, whoever made them."""
    return [(c.instance, c.loss, c.seconds) for c in read_trial(trial).instances]


def test_each_kill_costs_one_call_at_most(start: Start, url: str, log: Path) -> None:
    n_trials, kills, rng = 10, 10, random.Random(7)
    text = study(0.1)
    workers = [start(url, text, n_trials) for _ in range(3)]
    killed = 0

    def living() -> list[Forked]:
        return [w for w in workers if w.poll() is None]

    while killed < kills and living():
        seen = len(calls_in(log))
        wait_for(lambda seen=seen: len(calls_in(log)) > seen or not living())  # type: ignore[misc]
        time.sleep(rng.uniform(0.0, 0.3))
        if living():
            victim = rng.choice(living())
            victim.kill()
            victim.wait()
            killed += 1
            workers.append(start(url, text, n_trials))
    assert killed >= kills // 2
    ends_well(*[w for w in workers if w.returncode != -signal.SIGKILL])
    begun = calls_in(log)
    assert len(set(begun)) == n_trials * N_CALLS
    assert len(begun) - len(set(begun)) <= killed
    trials = trials_of(url)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * n_trials
    for trial in trials:
        assert list(trial.intermediate_values) == [1, 2, 3, 4]
        assert [c.instance for c in read_trial(trial).instances] == [
            "r/0",
            "r/0/1",
            "r/0/2",
            "r/0/3",
        ]
    # Whoever lost its worker after a call went on behind that call.
    resumed = [t for t in trials if any(a.calls for a in read_trial(t).attempts)]
    assert resumed
    for trial in resumed:
        kept = max(a.calls for a in read_trial(trial).attempts)
        assert [c.kept for c in read_trial(trial).instances] == [i < kept for i in range(N_CALLS)]


def test_a_stopped_trial_goes_on_at_its_first_missing_call_and_its_record_is_whole(
    start: Start, url: str, log: Path
) -> None:
    first = start(url, study(0.1), 1)
    wait_for(lambda: len(calls_in(log)) == 3)
    first.terminate()
    ends_well(first)
    (waiting,) = trials_of(url)
    assert waiting.state == TrialState.WAITING
    (attempt,) = read_trial(waiting).attempts
    assert (attempt.calls, attempt.lost) == (2, False)
    assert attempt.seconds is not None and attempt.seconds > 2 * 0.3
    ends_well(start(url, study(0.1), 1))
    assert [label for _, label in calls_in(log)] == ["r/0", "r/0/1", "r/0/2", "r/0/2", "r/0/3"]
    (resumed,) = trials_of(url)
    assert [c.kept for c in read_trial(resumed).instances] == [True, True, False, False]
    # What went into it is what both attempts took.
    duration = resumed.duration
    assert duration is not None
    assert compute_seconds([resumed]) == pytest.approx(duration.total_seconds() + attempt.seconds)

    # As if it had run through.
    (row,) = {r.recipe for r in open_storage(url).calls_of_study(1)}
    with open_storage(url).transaction() as c:
        c.execute(sa.delete(CALLS).where(CALLS.c.recipe == row))
    through = study(0.1).replace('name = "s"', 'name = "through"', 1)
    through += f"[[start]]\nlr = {resumed.params['lr']!r}\n"
    ends_well(start(url, through, 1))
    (whole,) = trials_of(url, "through")
    assert measured(whole) == measured(resumed)
    assert whole.intermediate_values == resumed.intermediate_values
    assert whole.value == resumed.value
    assert not any(c.kept for c in read_trial(whole).instances)


def test_another_study_reads_what_this_one_has_made(start: Start, url: str, log: Path) -> None:
    ends_well(start(url, study(), 2))
    assert len(calls_in(log)) == 2 * N_CALLS
    lrs = [t.params["lr"] for t in trials_of(url)]
    starts = "".join(f"[[start]]\nlr = {lr!r}\n" for lr in lrs)
    # A wider space and a smaller budget of seconds change no call.
    wide = study().replace('name = "s"', 'name = "wide"', 1).replace("high = 1e-2", "high = 1e-1")
    wide = wide.replace("\n[method]", "\nlimit_s = 100.0\n[method]", 1)
    ends_well(start(url, wide + starts, 2))
    assert len(calls_in(log)) == 2 * N_CALLS, "no call is made twice"
    both = [list(map(measured, trials_of(url, name))) for name in ("s", "wide")]
    assert both[0] == both[1]
    assert all(c.kept for t in trials_of(url, "wide") for c in read_trial(t).instances)

    # Other drawings' calls are others, and so are those of another estimator.
    other = study().replace('name = "s"', 'name = "other"', 1) + "[estimator]\nstrata = 7\n"
    ends_well(start(url, other + starts, 1))
    assert len(calls_in(log)) == 3 * N_CALLS


def test_start_from_reads_what_was_made_and_a_published_file_shows_it(
    start: Start,
    new_database: Callable[[str], str],
    log: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = new_database("sqlite")
    ends_well(start(url, study(), 2))
    more = study().replace('name = "s"', 'name = "more"', 1) + '[start_from]\nstudy = "s"\n'
    ends_well(start(url, more, 2))
    assert len(calls_in(log)) == 2 * N_CALLS
    assert {t.value for t in trials_of(url, "more")} == {t.value for t in trials_of(url)}

    (tmp_path / "s.toml").write_text(study())
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as c:
        c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    packed = tmp_path / "s.db.gz"
    packed.write_bytes(gzip.compress(Path(url.removeprefix("sqlite:///")).read_bytes()))
    assert status(["--study", str(tmp_path / "s.toml"), "--storage", str(packed)]) == 0
    assert f"calls       {2 * N_CALLS} kept" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value_json": '{"loss": 0.5'}, "is damaged: its checksum is another one"),
        ({"value_json": '{"loss": 0.0001, "instance": "r/0"}'}, "is damaged"),
        ({"checksum": ""}, "is damaged"),
    ],
)
def test_a_damaged_call_is_made_again_and_that_is_said(
    start: Start,
    new_database: Callable[[str], str],
    log: Path,
    change: dict[str, str],
    words: str,
) -> None:
    url = new_database("sqlite")
    ends_well(start(url, study(), 1))
    storage = open_storage(url)
    rows = storage.calls_of_study(1)
    assert [row.instance for row in rows] == ["r/0", "r/0/1", "r/0/2", "r/0/3"]
    (trial,) = trials_of(url)
    again = study() + f"[[start]]\nlr = {trial.params['lr']!r}\n"
    storage.delete_study(1)
    storage.keep_calls([replace(row, study_id=7) for row in (*rows[1:], broken(rows[0], change))])
    said = ends_well(start(url, again, 1))
    assert words in said
    assert "hpo_calls: r/0 of recipe" in said
    assert "Traceback" not in said
    assert [label for _, label in calls_in(log)][N_CALLS:] == ["r/0"]
    (trial_again,) = trials_of(url)
    assert measured(trial_again) == measured(trial)
    assert [c.kept for c in read_trial(trial_again).instances] == [False, True, True, True]


def broken(row: CallRow, change: dict[str, str]) -> CallRow:
    return replace(row, **change)  # type: ignore[arg-type]


def test_without_the_right_to_make_the_table_all_works_and_is_said_once(
    postgres: Postgres, start: Start, log: Path
) -> None:
    if not postgres.sql("SELECT 1 FROM pg_roles WHERE rolname = 'no_tables'"):
        postgres.sql("CREATE ROLE no_tables LOGIN PASSWORD 'no_tables'")
    name = "without_calls"
    open_storage(postgres.create(name))
    postgres.sql(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO no_tables", name
    )
    postgres.sql("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO no_tables", name)
    url = f"postgresql://no_tables:no_tables@127.0.0.1:{postgres.port}/{name}"
    said = ends_well(start(url, study(), 2))
    assert said.count("calls are not kept (permission denied for schema public") == 1
    assert "Traceback" not in said
    assert [t.state for t in trials_of(url)] == [TrialState.COMPLETE] * 2
    assert not any(c.kept for t in trials_of(url) for c in read_trial(t).instances)

    # A table of that name that is something else is left alone.
    postgres.sql("CREATE TABLE hpo_calls (x int)", name)
    postgres.sql("GRANT ALL ON hpo_calls TO no_tables", name)
    assert ends_well(start(url, study(), 3)).count("calls are not kept") == 1
    assert len(calls_in(log)) == 3 * N_CALLS


def test_a_study_of_a_release_without_the_table_goes_on(
    start: Start, new_database: Callable[[str], str], log: Path
) -> None:
    url = new_database("sqlite")
    first = start(url, study(0.1), 2)
    wait_for(lambda: len(calls_in(log)) == N_CALLS + 2)
    first.terminate()
    ends_well(first)
    storage = open_storage(url)
    with storage.transaction() as c:  # what that release would have left
        CALLS.drop(c)
    (_, waiting) = trials_of(url)
    attempts = [{"worker": "a:1#0", "why": "stopped", "lost": False}]
    plain = optuna.load_study(study_name="s", storage=url)
    plain._storage.set_trial_user_attr(waiting._trial_id, "attempts", attempts)
    done, _ = (measured(t) for t in trials_of(url))
    ends_well(start(url, study(0.1), 2))
    trials = trials_of(url)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 2
    assert measured(trials[0]) == done
    assert not any(c.kept for t in trials for c in read_trial(t).instances)
    assert storage.count_calls(1) == N_CALLS
