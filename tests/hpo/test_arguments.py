"""The command line beats the environment, which beats the study file; devices and cores."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from hpo.arguments import SAMPLERS, Options, parse_options
from hpo.errors import UserError
from hpo.process.devices import choose_device, n_cores, share_cores
from hpo.samplers.registry import Sampler
from hpo.study.config import load_study_file
from hpo.worker import pool
from hpo.worker.pool import _arguments, _devices


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("RUNES_"):
            monkeypatch.delenv(name)


def test_the_command_line_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNES_TRIALS", "7")
    monkeypatch.setenv("RUNES_SECONDS", "2.5")
    monkeypatch.setenv("RUNES_STORAGE", "sqlite:///environment.db")
    options = parse_options(["--study", "runes", "--trials", "3"], None)
    assert (options.trials, options.seconds) == (3, 2.5)
    assert options.storage == "sqlite:///environment.db"


def test_drawings_are_named_on_the_command_line() -> None:
    options = parse_options(["--study", "s"], None)
    assert (options.data, options.alphabet, options.drawings, options.train) == (None,) * 4
    options = parse_options(["--study", "s", "--drawings", "mine", "--train", "5"], None)
    assert (options.drawings, options.train) == (Path("mine"), 5)
    options = parse_options(["--study", "s", "--data", "there", "--alphabet", "Greek"], None)
    assert (options.data, options.alphabet) == (Path("there"), "Greek")


def test_the_environment_beats_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_study_file("quickstart")
    assert config.storage_url() == "sqlite:///quickstart.db"
    monkeypatch.setenv("RUNES_STORAGE", "sqlite:///environment.db")
    assert config.storage_url() == "sqlite:///environment.db"
    assert config.storage_url("sqlite:///option.db") == "sqlite:///option.db"


def test_a_study_may_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNES_STUDY", "quickstart")
    assert parse_options([], None) == Options(study="quickstart")


def test_no_study_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_options([], None)
    assert stop.value.code == 2
    assert "--study is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "variable", "message"),
    [
        (["--trials", "0"], None, "--trials is 0; write more than 0"),
        (["--seconds", "nan"], None, "--seconds is nan; write more than 0"),
        (["--seed", "-1"], None, "--seed is -1; write 0 or more"),
        (["--sampler", "tree"], None, "--sampler is 'tree'; write one of tpe, gp, random"),
        ([], ("RUNES_SAMPLER", "cma"), "RUNES_SAMPLER is 'cma'; write one of tpe, gp, random"),
        ([], ("RUNES_WORKERS", "many"), "RUNES_WORKERS is 'many'; write a number"),
        ([], ("RUNES_THREADS", "0"), "RUNES_THREADS is 0; write more than 0"),
    ],
)
def test_a_mistake_names_the_option_or_the_variable(
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    variable: tuple[str, str] | None,
    message: str,
) -> None:
    if variable:
        monkeypatch.setenv(*variable)
    with pytest.raises(UserError) as error:
        parse_options(["--study", "runes", *arguments], None)
    assert str(error.value) == message


def test_samplers_are_those_that_a_study_file_may_name() -> None:
    assert get_args(Sampler.model_fields["name"].annotation) == SAMPLERS


def test_workers_of_a_fleet_are_told_what_the_fleet_was() -> None:
    arguments = _arguments(Options("s", trials=3, sampler="random", workers=2))
    told = dict(itertools.pairwise(arguments))
    assert (told["--trials"], told["--sampler"], told["--workers"]) == ("3", "random", "1")
    assert "--sampler" not in _arguments(Options("s", workers=2))
    told = dict(itertools.pairwise(_arguments(Options("s", drawings=Path("mine"), train=5))))
    assert (told["--drawings"], told["--train"]) == ("mine", "5")
    assert "--alphabet" in _arguments(Options("s", alphabet="Greek"))


def test_cores_are_shared_out_and_nobody_has_none() -> None:
    assert share_cores(1) == n_cores()
    for workers in range(1, 3 * n_cores()):
        assert share_cores(workers) >= 1
        assert share_cores(workers) * workers <= max(n_cores(), workers)


@pytest.mark.parametrize(
    ("device", "visible", "left"),
    [
        (None, "3,5", "3,5"),
        ("cuda", "3,5", "3,5"),
        ("cuda:1", "3,5", "5"),
        ("cuda:1", None, "1"),
        ("cpu", "3,5", ""),
    ],
)
def test_a_device_is_what_is_left_visible(
    monkeypatch: pytest.MonkeyPatch, device: str | None, visible: str | None, left: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    choose_device(device)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == left


def test_a_device_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match="--device is 'gpu'; write cpu, cuda or cuda:N"):
        choose_device("gpu")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES leaves 1"):
        choose_device("cuda:2")


def test_workers_of_a_fleet_take_gpus_in_turn() -> None:
    assert _devices(Options("s", workers=3), 2) == ["cuda:0", "cuda:1", "cuda:0"]
    assert _devices(Options("s", workers=3), 1) == [None] * 3
    assert _devices(Options("s", workers=2, device="cuda:1"), 4) == ["cuda:1"] * 2
    assert _devices(Options("s", workers=2, device="cpu"), 4) == ["cpu"] * 2


def test_workers_of_a_fleet_choose_from_all_devices_that_the_fleet_was_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[dict[str, str]] = []

    def start(index: int, arguments: Sequence[str], environment: Mapping[str, str]) -> Any:
        given.append(dict(environment))
        raise InterruptedError

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(pool, "_start", start)
    monkeypatch.setattr(pool, "check_device", lambda device: None)
    options = Options(
        "quickstart", storage=f"sqlite:///{tmp_path}/s.db", workers=2, device="cuda:1"
    )
    with pytest.raises(InterruptedError):
        pool.run_fleet(options)
    # What `--device cuda:1` makes of it in the worker, as it did in the fleet itself.
    assert given[0]["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_seed_for_a_whole_fleet_is_one_line_and_makes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    with pytest.raises(UserError, match="--seed is one worker's"):
        pool.run_fleet(Options("quickstart", storage=url, workers=2, seed=1))
    assert not (tmp_path / "s.db").exists()
