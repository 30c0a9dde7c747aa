"""What a process pool passes on to its workers."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpo.arguments import parse, passed_on
from hpo.errors import EXIT_FAILED, UserError
from hpo.worker import pool
from hpo.worker.options import WorkerOptions
from hpo.worker.pool import _devices
from tests.cheap import CHEAP_TOML


@pytest.mark.parametrize(
    "options",
    [
        WorkerOptions(study="s"),
        WorkerOptions(study="s", trials=3, seconds=2.5, sampler="random", together=2),
        WorkerOptions(study="s", data=Path("there"), alphabet="Greek", device="cuda:1", threads=1),
        WorkerOptions(study="s", drawings=Path("mine"), train=5, artifacts="none"),
    ],
)
def test_workers_are_told_what_the_pool_was(
    monkeypatch: pytest.MonkeyPatch, options: WorkerOptions
) -> None:
    inherited = {"RUNES_WORKERS": "4", "RUNES_TRIALS": "9", "OTHER": "x"}
    alone = replace(options, in_pool=True)
    arguments, environment = passed_on(alone, inherited)
    assert environment["OTHER"] == "x"
    for name in [name for name in os.environ if name.startswith("RUNES_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parse(WorkerOptions, arguments, "worker", None) == alone


def test_a_password_is_on_no_workers_command_line() -> None:
    url = "postgresql://me:secret@there/runes"
    arguments, environment = passed_on(WorkerOptions(study="s", storage=url), {})
    assert "secret" not in " ".join(arguments)
    assert environment["RUNES_STORAGE"] == url


def test_workers_take_gpus_in_turn() -> None:
    def devices(n_gpus: int, **options: Any) -> list[str | None]:
        return _devices(WorkerOptions(study="s", **options), n_gpus)

    assert devices(2, workers=3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices(1, workers=3) == [None] * 3
    assert devices(4, workers=2, device="cuda:1") == ["cuda:1"] * 2
    assert devices(4, workers=2, device="cpu") == ["cpu"] * 2


def test_workers_choose_from_all_devices_that_the_pool_was_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[dict[str, str]] = []

    def start(index: int, arguments: Sequence[str], environment: Mapping[str, str]) -> Any:
        given.append(dict(environment))
        raise InterruptedError

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(pool, "_start", start)
    (tmp_path / "s.toml").write_text(
        f'name = "s"\nstorage = "sqlite:///{tmp_path}/s.db"\n{CHEAP_TOML}'
        '[instances]\nsource = "drawn"\n[space.lr]\ntype = "float"\nlow = 0.1\nhigh = 0.2\n'
    )
    options = WorkerOptions(study=str(tmp_path / "s.toml"), workers=2, device="cuda:1")
    with pytest.raises(InterruptedError):
        pool.run_pool(options)
    # What `--device cuda:1` makes of it in the worker, as it did in the pool itself.
    assert given[0]["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_seed_for_a_whole_pool_is_one_line_and_makes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    with pytest.raises(UserError, match="--seed is one worker's"):
        pool.run_pool(WorkerOptions(study="quickstart", storage=url, workers=2, seed=1))
    assert not (tmp_path / "s.db").exists()


def _pool_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, workers: int
) -> tuple[int, list[float]]:
    """The exit code of a pool whose workers run ``code``, and when each was started."""
    started: list[float] = []
    real = pool._Worker

    def start(study: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Any:
        started.append(time.monotonic())
        process = subprocess.Popen([sys.executable, "-c", code], text=True)
        printer = threading.Thread(target=lambda: None)
        printer.start()
        return real(process, printer, threading.Event())

    monkeypatch.setattr(pool, "_start", start)
    monkeypatch.setattr(pool, "_POLL_S", 0.01)
    monkeypatch.setattr(pool, "_PAUSES_S", (0.0, 0.1, 0.3))
    (tmp_path / "s.toml").write_text(
        f'name = "s"\nstorage = "sqlite:///{tmp_path}/s.db"\n{CHEAP_TOML}'
        '[instances]\nsource = "drawn"\n[space.lr]\ntype = "float"\nlow = 0.1\nhigh = 0.2\n'
    )
    return pool.run_pool(WorkerOptions(study=str(tmp_path / "s.toml"), workers=workers)), started


def test_a_pool_whose_workers_all_die_at_their_start_gives_up_after_growing_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    dies = "import os; os.kill(os.getpid(), 9)"
    code, started = _pool_of(tmp_path, monkeypatch, dies, workers=1)
    assert code == EXIT_FAILED
    assert len(started) == 3
    first, second = (after - before for before, after in itertools.pairwise(started))
    assert second > max(first, 0.1)
    said = capfd.readouterr().err
    assert "worker 0 died of signal 9; starting another" in said
    assert "every worker died at its start, 3 times in a row; giving up" in said


def test_a_pool_replaces_workers_as_long_as_not_all_die_at_their_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first lives until five others have died and one has not.
    code = (
        "import os, pathlib, time\n"
        f"place = pathlib.Path({str(tmp_path)!r})\n"
        "dead = lambda: len(list(place.glob('dead*')))\n"
        "try: (place / 'first').touch(exist_ok=False)\n"
        "except OSError:\n"
        "    if dead() < 5:\n"
        "        (place / f'dead{os.getpid()}').touch()\n"
        "        os.kill(os.getpid(), 9)\n"
        "    (place / 'last').touch()\n"
        "while not (place / 'last').exists(): time.sleep(0.02)\n"
    )
    result, started = _pool_of(tmp_path, monkeypatch, code, workers=2)
    assert result == 0
    assert len(started) == 2 + 5


def test_more_workers_than_the_machine_can_hold_are_refused_before_any_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    with pytest.raises(UserError, match=r"--workers is 1000000; this machine's \d+ GiB hold \d+"):
        pool.run_pool(WorkerOptions(study="quickstart", storage=url, workers=1_000_000))
    monkeypatch.setattr("resource.getrlimit", lambda which: (100, 100))
    with pytest.raises(UserError, match="limit of 100 open files allows 12: raise it by ulimit"):
        pool.run_pool(WorkerOptions(study="quickstart", storage=url, workers=13))
    assert not (tmp_path / "s.db").exists()
