"""Commands that only look: rights to read are enough, and nothing in the database changes."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from hpo.storage.open import open_storage
from tests.cheap import CHEAP_TOML

REPO = Path(__file__).parents[2]
STUDY = f"""
name = "s"
storage = "sqlite:///kept/s.db"
{CHEAP_TOML}
[instances]
source = "drawn"
runes = ["thorn"]
[fixed]
steps = 3
[space.lr]
type = "float"
low = 1e-4
high = 1e-1
log = true
"""
# The tests may run as root, whom no mode stops as long as it has two of its capabilities.
AS_READER = (
    "import ctypes, os, sys\n"
    "prctl, drop, capabilities = ctypes.CDLL(None).prctl, 24, (1, 2)  # see capabilities(7)\n"
    "for capability in capabilities if os.getuid() == 0 else (): prctl(drop, capability, 0, 0, 0)\n"
    "os.execv(sys.executable, [sys.executable, '-m', *sys.argv[1:]])\n"
)


def run(directory: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_READER, module, "--study", "s.toml", *arguments],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def environment() -> dict[str, str]:
    return dict(os.environ, PYTHONPATH=str(REPO), RUNES_ARTIFACTS="none")


@pytest.fixture
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a finished study in a directory that may only be read."""
    directory = tmp_path_factory.mktemp("looks")
    (directory / "s.toml").write_text(STUDY)
    (directory / "kept").mkdir()
    worker = [sys.executable, "-m", "hpo.worker", "--study", "s.toml", "--trials", "2"]
    subprocess.run(worker, cwd=directory, env=environment(), check=True, capture_output=True)
    (directory / "kept" / "s.db").chmod(0o444)
    (directory / "kept").chmod(0o555)
    yield directory
    (directory / "kept").chmod(0o755)


def test_a_database_that_may_only_be_read_can_be_looked_at(finished: Path) -> None:
    before = (finished / "kept" / "s.db").read_bytes()
    status = run(finished, "hpo.status", "--json")
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["finished"] == 2
    for module, *arguments in (
        ["hpo.report", "--out", "page.html"],
        ["hpo.export", "--out", "best.py"],
    ):
        done = run(finished, module, *arguments)
        assert done.returncode == 0, done.stderr
    refused = run(finished, "hpo.confirm")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "make the file and its directory writable" in refused.stderr
    command = [sys.executable, "-c", AS_READER, "hpo.dashboard", "--study", "s.toml", "--port", "0"]
    server = subprocess.Popen(
        command, cwd=finished, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        address = next(line for line in server.stdout if line.startswith("http")).strip()
        with urllib.request.urlopen(f"{address}api/studies/1", timeout=30) as answer:
            assert len(json.load(answer)["trials"]) == 2
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    assert (finished / "kept" / "s.db").read_bytes() == before
    assert [path.name for path in (finished / "kept").iterdir()] == ["s.db"]


def test_a_look_changes_nothing_of_plain_optunas_database(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(STUDY.replace("kept/", ""))
    url = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=url, study_name="s")
    study.optimize(lambda trial: trial.suggest_float("lr", 1e-4, 1e-1, log=True), n_trials=2)
    before = (tmp_path / "s.db").read_bytes()
    for arguments in (["hpo.status"], ["hpo.report", "--out", "page.html"]):
        command = [sys.executable, "-m", *arguments, "--study", "s.toml"]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True)
        assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "s.db") as c:
        assert c.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        indexes = c.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall()
    assert not [name for (name,) in indexes if name.startswith("ix_hpo")]
    assert (tmp_path / "s.db").read_bytes() == before
    shutil.copy(tmp_path / "s.db", tmp_path / "worked.db")
    open_storage(f"sqlite:///{tmp_path}/worked.db")  # as workers do, the file does change
    assert (tmp_path / "worked.db").read_bytes() != before
