"""The worker as people run it: real processes, a real database.

Those that are not about calls run a method without torch.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import psutil
import pytest
from optuna.trial import TrialState
from PIL import Image

from finetune.data.synthetic import draw_rune
from tests.cheap import CHEAP_TOML
from tests.waiting import wait_for

if TYPE_CHECKING:
    import torch

    from tests.conftest import Forked, Nursery, Process

ROOT = Path(__file__).parents[3]
COMMAND = ("-m", "hpo.worker", "--threads", "1")
SPACE = """
[[start]]
lr = 2e-3
[space.lr]
type = "float"
low = 1e-4
high = 1e-2
log = true
"""
REAL = f"""
name = "tiny"
storage = "sqlite:///tiny.db"
[instances]
source = "drawn"
runes = ["thorn"]
[estimator]
strata = 2
replicates = 2
[fixed]
steps = 2
batch_size = 2
render = "direct"
precision = "fp32"
{SPACE}"""
CHEAP = f"""
name = "tiny"
storage = "sqlite:///tiny.db"
{CHEAP_TOML}
[instances]
source = "drawn"
runes = ["thorn"]
{SPACE}"""
LONG = f"{CHEAP}[fixed]\nsteps = 1000\nstep_s = 0.1\n"  # a call that only a signal ends


Start = Callable[..., "Forked"]


def environment(**more: str) -> dict[str, str]:
    """That of a worker, which draws no pictures unless it is told: they take seconds each."""
    variables = {k: v for k, v in os.environ.items() if k != "RUNES_DATA"}
    return variables | {"PYTHONPATH": str(ROOT), "RUNES_ARTIFACTS": "none"} | more


def starter(nursery: Nursery, logs: Path, ended: list[Process]) -> Start:
    """Starts the command in a directory, and ends it in the end if it has not."""

    def start(directory: Path, *arguments: str, **more: str) -> Forked:
        out, err = (logs / f"{len(ended)}.{kind}" for kind in ("out", "err"))
        command = [*COMMAND, *arguments]
        process = nursery.start(command, directory, environment(**more), out, err)
        ended.append(process)
        return process

    return start


@pytest.fixture
def start(
    cheap_nursery: Nursery, tmp_path_factory: pytest.TempPathFactory, ended: list[Process]
) -> Start:
    return starter(cheap_nursery, tmp_path_factory.mktemp("logs"), ended)


@pytest.fixture
def start_real(
    worker_nursery: Nursery, tmp_path_factory: pytest.TempPathFactory, ended: list[Process]
) -> Start:
    """As `start`, with torch at hand."""
    return starter(worker_nursery, tmp_path_factory.mktemp("logs"), ended)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(CHEAP)
    return tmp_path


def trials(directory: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="tiny", storage=f"sqlite:///{directory}/tiny.db").trials


def test_a_worker_starts_from_nothing_and_draws_what_people_look_at(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(REAL)
    first = subprocess.run(
        [sys.executable, *COMMAND, "--study", "tiny.toml", "--trials", "1"],
        cwd=tmp_path,
        env=environment(RUNES_ARTIFACTS=""),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert first.returncode == 0, first.stderr
    assert "Trial 0 has the lowest loss so far" in first.stdout
    assert "python -m hpo.worker --study tiny.toml" in first.stdout
    assert "trial 0: complete, loss " in first.stderr
    assert list((tmp_path / "tiny-artifacts").iterdir())
    (trial,) = trials(tmp_path)
    assert trial.params == {"lr": 2e-3}  # the starting recipe
    assert trial.user_attrs["instances"][0]["instance"] == "thorn/0"

    # Notes and plots are the dashboard's to make.
    assert "hpo:note" not in trial.system_attrs
    stored = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/tiny.db").get_study_system_attrs(1)
    assert not [key for key in stored if key.startswith(("dashboard:", "hpo:story"))]


def test_a_worker_and_then_a_pool_share_a_study(start: Start, tiny: Path) -> None:
    assert start(tiny, "--study", "tiny.toml", "--trials", "1").wait(timeout=60) == 0
    pool = start(tiny, "--study", "tiny.toml", "--trials", "40", "--workers", "2")
    out, err = pool.communicate(timeout=120)
    assert pool.returncode == 0, err
    assert "40 trials finished" in out
    after = trials(tiny)
    assert [t.state for t in after] == [TrialState.COMPLETE] * 40
    assert len({t.params["lr"] for t in after}) == 40  # each samples on its own
    assert len({t.user_attrs["worker"] for t in after}) == 3


def test_a_pool_stops_as_one_and_hands_back_its_trials(start: Start, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(LONG)
    pool = start(tmp_path, "--study", "tiny.toml", "--workers", "2")
    wait_for(lambda: _recipes_stored(tmp_path / "tiny.db") == 2)
    pool.send_signal(signal.SIGTERM)
    _, err = pool.communicate(timeout=30)
    assert pool.returncode == 0, err
    assert "Traceback" not in err
    assert [t.state for t in trials(tmp_path)] == [TrialState.WAITING] * 2


def test_a_pool_whose_every_process_gets_sigterm_hands_back_its_trials(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(LONG)
    pool = start(tmp_path, "--study", "tiny.toml", "--workers", "2")
    wait_for(lambda: _recipes_stored(tmp_path / "tiny.db") == 2)
    workers = psutil.Process(pool.pid).children()
    assert len(workers) == 2
    for process in (pool, *workers):  # as systemd and Slurm do
        process.send_signal(signal.SIGTERM)
    _, err = pool.communicate(timeout=30)
    assert pool.returncode == 0, err
    assert [t.state for t in trials(tmp_path)] == [TrialState.WAITING] * 2


def test_workers_of_a_pool_that_was_killed_stop_too(start: Start, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(LONG)
    pool = start(tmp_path, "--study", "tiny.toml", "--workers", "2")
    wait_for(lambda: _recipes_stored(tmp_path / "tiny.db") == 2)
    pool.kill()
    pool.communicate(timeout=30)
    wait_for(lambda: all(t.state == TrialState.WAITING for t in trials(tmp_path)))


def test_sigterm_hands_the_trial_back(start: Start, tmp_path: Path) -> None:
    hands_back(start, tmp_path, LONG)


def test_sigterm_in_the_middle_of_a_real_call_hands_the_trial_back(
    start_real: Start, tmp_path: Path
) -> None:
    hands_back(start_real, tmp_path, REAL.replace("steps = 2", "steps = 100_000"))


def hands_back(start: Start, directory: Path, study: str) -> None:
    """A worker on this study does so when it gets SIGTERM."""
    (directory / "tiny.toml").write_text(study)
    worker = start(directory, "--study", "tiny.toml")
    wait_for(lambda: _recipes_stored(directory / "tiny.db") == 1)
    asked = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    _, err = worker.communicate(timeout=60)
    assert time.monotonic() - asked < 5
    assert worker.returncode == 0
    assert "Traceback" not in err
    (waiting,) = trials(directory)
    assert waiting.state == TrialState.WAITING
    assert waiting.params == {"lr": 2e-3}


def _recipes_stored(database: Path) -> int:
    if not database.exists():
        return 0
    try:
        with sqlite3.connect(database) as connection:
            query = "SELECT count(*) FROM trial_user_attributes WHERE key = 'recipe'"
            return int(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # the tables are not there yet


def test_without_omniglot_one_line_says_where_it_goes_and_what_needs_none(
    start_real: Start, tmp_path: Path
) -> None:
    nowhere = "http://127.0.0.1:9"  # nothing listens there: a machine without a network
    worker = start_real(
        tmp_path, "--study", "runes", XDG_CACHE_HOME=str(tmp_path), HTTPS_PROXY=nowhere
    )
    _, err = worker.communicate(timeout=120)
    assert worker.returncode == 2
    message = err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert "--data" in message
    assert "RUNES_DATA" in message
    assert "--study quickstart" in message
    assert "Traceback" not in err
    assert not (tmp_path / "runes.db").exists()


def test_a_dry_run_shows_the_study_and_creates_nothing(start: Start, tiny: Path) -> None:
    arguments = ["--study", "tiny.toml", "--dry-run", "--sampler", "gp"]
    worker = start(tiny, *arguments, RUNES_ARTIFACTS="")
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == 0, err
    assert '"source": "drawn"' in out
    assert '"name": "gp"' in out
    assert '"steps": 2' in out  # of the sampled recipe
    assert "1. thorn/0 from none" in out
    assert sorted(p.name for p in tiny.iterdir()) == ["tiny.toml"]


def draw_png(path: Path, bitmap: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((1 - bitmap) * 255).numpy()).save(path)


def test_a_study_on_a_folder_of_drawings(start_real: Start, tmp_path: Path) -> None:
    for i, bitmap in enumerate(draw_rune("ger", 5, 0)):
        draw_png(tmp_path / "mine" / "full moon" / f"{i}.png", bitmap)
    text = REAL.replace('source = "drawn"', 'drawings = "mine"\ntrain = 3')
    (tmp_path / "tiny.toml").write_text(text.replace('runes = ["thorn"]', ""))
    worker = start_real(tmp_path, "--study", "tiny.toml", "--trials", "2")
    _, err = worker.communicate(timeout=120)
    assert worker.returncode == 0, err
    done = trials(tmp_path)
    assert [t.state for t in done] == [TrialState.COMPLETE] * 2
    (measured,) = done[0].user_attrs["instances"]
    assert measured["instance"] == "full_moon/0"
    url = f"sqlite:///{tmp_path}/tiny.db"
    (study,) = optuna.get_all_study_summaries(url)
    data = study.user_attrs["manifest"]["data"]
    assert data.startswith("drawings ")
    assert data.endswith("/3")

    for arguments, words in [
        (["--train", "2"], ["made with other data", "/2 here", "--drawings"]),
        (["--drawings", "other"], ["made with other data", "--drawings"]),
        (["--train", "5"], ["full_moon: train is 5, and of 5 drawings", "write 1 to 4"]),
        (["--drawings", "none"], ["none: no such folder"]),
        (["--train", "0"], ["--train is 0"]),
    ]:
        if arguments[-1] == "other":
            shutil.copytree(tmp_path / "mine", tmp_path / "other")
            draw_png(tmp_path / "other" / "full moon" / "5.png", draw_rune("os", 1, 0)[0])
        refused = start_real(tmp_path, "--study", "tiny.toml", *arguments)
        _, err = refused.communicate(timeout=60)
        assert refused.returncode == 2, err
        for word in words:
            assert word in err.strip().splitlines()[-1]
        assert "Traceback" not in err
    shutil.move(tmp_path / "mine", tmp_path / "moved")
    moved = start_real(tmp_path, "--study", "tiny.toml", "--drawings", "moved", "--trials", "3")
    _, err = moved.communicate(timeout=120)
    assert moved.returncode == 0, err
    assert len(trials(tmp_path)) == 3, "the same drawings in another place"


def test_bad_input_is_one_line_and_exit_code_2(start: Start, tiny: Path) -> None:
    for arguments, word in [
        (["--study", "nonsense"], "no study 'nonsense'"),
        (["--study", "quickstart", "--trials", "0"], "--trials is 0; write more than 0"),
        (
            ["--study", "quickstart", "--device", "gpu"],
            "--device is 'gpu'; write cpu, cuda or cuda:N",
        ),
        (["--study", "tiny.toml", "--storage", "nonsense"], "sqlite:///runes.db"),
        (["--study", "tiny.toml", "--storage", "sqlite:////no/such/dir/x.db"], "can't open"),
    ]:
        worker = start(tiny, *arguments)
        _, err = worker.communicate(timeout=60)
        assert worker.returncode == 2, err
        assert word in err.strip().splitlines()[-1]
        assert "Traceback" not in err


def test_a_worker_with_other_data_refuses_to_join(start: Start, tiny: Path) -> None:
    assert start(tiny, "--study", "tiny.toml", "--trials", "1").wait(timeout=120) == 0
    text = (tiny / "tiny.toml").read_text()
    (tiny / "other.toml").write_text(text.replace('"thorn"', '"os"'))
    other = start(tiny, "--study", "other.toml", "--trials", "2")
    _, err = other.communicate(timeout=60)
    assert other.returncode == 2
    message = err.strip().splitlines()[-1]
    assert message.startswith("error: study tiny was made with other instances")
    assert 'start_from = { study = "tiny" }' in message


def test_a_new_study_starts_from_the_best_of_an_old_one(start: Start, tiny: Path) -> None:
    assert start(tiny, "--study", "tiny.toml", "--trials", "3").wait(timeout=120) == 0
    best = min(trials(tiny), key=lambda t: t.value or 0.0)
    text = (tiny / "tiny.toml").read_text().replace('name = "tiny"', 'name = "wide"')
    text = text.replace("high = 1e-2", "high = 2e-2").replace("[[start]]\nlr = 2e-3\n", "")
    start_from = '[start_from]\nstudy = "tiny"\nbest = 1\n[space.lr]'
    (tiny / "wide.toml").write_text(text.replace("[space.lr]", start_from))
    wide = start(tiny, "--study", "wide.toml", "--trials", "1")
    assert wide.wait(timeout=60) == 0
    study = optuna.load_study(study_name="wide", storage=f"sqlite:///{tiny}/tiny.db")
    assert study.trials[0].params == best.params
    assert study.best_value == pytest.approx(best.value, rel=1e-6)
