"""The Slurm script as a process, with signals as Slurm sends them and a scontrol that writes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from optuna.trial import FrozenTrial

from hpo.storage.open import load_study, open_storage
from tests.waiting import wait_for

REPO = Path(__file__).parents[2]
SCRIPT = REPO / "deploy" / "slurm" / "worker.sbatch"

Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, study_text: Callable[..., str]) -> Iterator[Start]:
    """Starts the script on a study, whose calls are endless if it is called slow."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, line in [
        ("python", f'exec {sys.executable} "$@"'),
        ("scontrol", f'echo "$@" >> {tmp_path}/scontrol.log'),
    ]:
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    started = []

    def start(name: str) -> subprocess.Popen[str]:
        (tmp_path / "study.toml").write_text(study_text(name, slow=name == "slow"))
        process = subprocess.Popen(
            ["bash", str(SCRIPT)],
            cwd=tmp_path,
            env={
                "PATH": f"{programs}:{os.environ['PATH']}",
                "PYTHONPATH": str(REPO),
                "RUNES_STUDY": "study.toml",
                "RUNES_STORAGE": f"sqlite:///{tmp_path}/{name}.db",
                "RUNES_ARTIFACTS": "none",
                "SLURM_JOB_ID": "77",
                "SLURM_ARRAY_TASK_ID": "3",
                "SLURM_CPUS_PER_TASK": "1",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def trials(directory: Path, name: str) -> list[FrozenTrial]:
    return load_study(open_storage(f"sqlite:///{directory}/{name}.db"), name).trials


def is_running(directory: Path) -> bool:
    if not (directory / "slow.db").exists():
        return False
    try:
        return any(t.params and t.state.name == "RUNNING" for t in trials(directory, "slow"))
    except Exception:  # the study is being made
        return False


def test_it_ends_when_the_budget_is_spent(start: Start, tmp_path: Path) -> None:
    task = start("quick")
    _, err = task.communicate(timeout=180)
    assert task.returncode == 0, err
    assert [t.state.name for t in trials(tmp_path, "quick")] == ["COMPLETE"]
    assert not (tmp_path / "scontrol.log").exists()


def test_before_its_time_is_over_it_hands_its_trial_back_and_is_queued_again(
    start: Start, tmp_path: Path
) -> None:
    task = start("slow")
    wait_for(lambda: is_running(tmp_path), every_s=0.2)
    task.send_signal(signal.SIGUSR1)  # to the script alone: --signal=B:USR1@60
    _, err = task.communicate(timeout=60)
    assert task.returncode == 0, err
    assert "queued again; any worker goes on with it" in err
    assert "task 3 is queued again" in err
    assert [t.state.name for t in trials(tmp_path, "slow")] == ["WAITING"]
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n"

    # It runs again; this time it is pre-empted: SIGTERM to all processes, later SIGKILL.
    again = start("slow")
    wait_for(lambda: is_running(tmp_path), every_s=0.2)
    processes = [again, *psutil.Process(again.pid).children(recursive=True)]
    assert len(processes) >= 2
    for process in processes:
        process.send_signal(signal.SIGTERM)
    wait_for(lambda: [t.state.name for t in trials(tmp_path, "slow")] == ["WAITING"])
    wait_for(lambda: [p.name() for p in psutil.Process(again.pid).children()] == ["sleep"])
    again.send_signal(signal.SIGTERM)  # at the end of the grace, before SIGKILL
    time.sleep(0.5)
    assert again.poll() is None  # who ends by himself is not queued again
    os.killpg(again.pid, signal.SIGKILL)
    assert "task 3 waits for Slurm to end it" in again.communicate()[1]
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n"


def test_a_signal_before_the_worker_runs_queues_the_task_again(
    start: Start, tmp_path: Path
) -> None:
    task = start("slow")
    wait_for(lambda: psutil.Process(task.pid).children())
    task.send_signal(signal.SIGUSR1)
    task.communicate(timeout=60)
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n"
    assert not is_running(tmp_path)


def test_slurm_is_told_to_signal_the_script_alone_and_in_time() -> None:
    options = dict(
        re.match(r"#SBATCH --([\w-]+)=?(.*)", line).groups()  # type: ignore[union-attr]
        for line in SCRIPT.read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    assert options["signal"] == "B:USR1@60"
    assert (options["requeue"], options["ntasks"], options["open-mode"]) == ("", "1", "append")
