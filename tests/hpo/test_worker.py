"""The worker as people run it: real processes, a real database."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

STUDY = """
name = "tiny"
storage = "sqlite:///tiny.db"
[instances]
source = "drawn"
runes = ["thorn"]
[estimator]
strata = 2
replicates = 2
[fixed]
steps = {steps}
batch_size = 2
render = "direct"
precision = "fp32"
[[start]]
lr = 2e-3
[space.lr]
type = "float"
low = 1e-4
high = 1e-2
log = true
"""


def start(directory: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    variables = {k: v for k, v in os.environ.items() if k != "RUNES_DATA"} | environment
    return subprocess.Popen(
        [sys.executable, "-m", "hpo.worker", "--threads", "1", *arguments],
        cwd=directory,
        env=variables | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(STUDY.format(steps=2))
    return tmp_path


def trials(directory: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="tiny", storage=f"sqlite:///{directory}/tiny.db").trials


def test_workers_one_after_another_and_together_share_a_study(tiny: Path) -> None:
    first = start(tiny, "--study", "tiny.toml", "--trials", "1")
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert "best: trial 0" in out
    (trial,) = trials(tiny)
    assert trial.params == {"lr": 2e-3}  # the starting recipe
    assert trial.user_attrs["instances"][0]["instance"] == "thorn/0"
    assert sqlite3.connect(tiny / "tiny.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)

    both = [start(tiny, "--study", "tiny.toml", "--trials", "4") for _ in range(2)]
    for worker in both:
        _, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
    after = trials(tiny)
    assert all(t.state == TrialState.COMPLETE for t in after)
    assert 4 <= len(after) <= 5  # the last trials of two workers may both be under way
    assert len({t.params["lr"] for t in after}) == len(after)  # each samples on its own


def test_sigterm_fails_the_trial_and_queues_it_again(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(STUDY.format(steps=100_000))
    worker = start(tmp_path, "--study", "tiny.toml")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        running = (tmp_path / "tiny.db").exists() and _recipes_stored(tmp_path / "tiny.db")
        if running:
            break
        time.sleep(0.2)
    assert running
    worker.send_signal(signal.SIGTERM)
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 130
    assert "Traceback" not in err
    failed, waiting = trials(tmp_path)
    assert failed.state == TrialState.FAIL
    assert waiting.state == TrialState.WAITING
    assert waiting.system_attrs["fixed_params"] == {"lr": 2e-3}


def _recipes_stored(database: Path) -> bool:
    try:
        with sqlite3.connect(database) as connection:
            query = "SELECT count(*) FROM trial_user_attributes WHERE key = 'recipe'"
            return bool(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return False  # the tables are not there yet


def test_without_omniglot_one_line_says_where_it_goes_and_what_needs_none(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"  # nothing listens there: a machine without a network
    worker = start(tmp_path, "--study", "runes", XDG_CACHE_HOME=str(tmp_path), HTTPS_PROXY=nowhere)
    _, err = worker.communicate(timeout=120)
    assert worker.returncode == 2
    message = err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert "--data" in message
    assert "RUNES_DATA" in message
    assert "--study quickstart" in message
    assert "Traceback" not in err
    assert not (tmp_path / "runes.db").exists()


def test_a_dry_run_shows_the_study_and_creates_nothing(tiny: Path) -> None:
    worker = start(tiny, "--study", "tiny.toml", "--dry-run")
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == 0, err
    assert '"source": "drawn"' in out
    assert '"steps": 2' in out  # of the sampled recipe
    assert "1. thorn/0 from unet_1" in out
    assert sorted(p.name for p in tiny.iterdir()) == ["tiny.toml"]


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for arguments, word in [
        (["--study", "nonsense"], "no study 'nonsense'"),
        (["--study", "quickstart", "--trials", "0"], "--trials is 0; write more than 0"),
        (["--study", "quickstart", "--storage", "nonsense"], "sqlite:///runes.db"),
        (["--study", "quickstart", "--storage", "sqlite:////no/such/dir/x.db"], "can't open"),
    ]:
        worker = start(tmp_path, *arguments)
        _, err = worker.communicate(timeout=60)
        assert worker.returncode == 2, err
        assert word in err.strip().splitlines()[-1]
        assert "Traceback" not in err
