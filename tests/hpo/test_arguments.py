"""Options of commands: the command line beats the environment, which beats the study file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hpo.arguments import option, parse
from hpo.confirm.options import ConfirmOptions
from hpo.dashboard.options import DashboardOptions
from hpo.errors import UserError
from hpo.export.__main__ import ExportOptions
from hpo.init import InitOptions
from hpo.move.__main__ import MoveOptions
from hpo.report.__main__ import ReportOptions
from hpo.samplers.registry import SAMPLERS as REGISTRY
from hpo.status import StatusOptions
from hpo.study.config import load_study_file
from hpo.worker.options import SAMPLERS, WorkerOptions

# Of each command its options, and what it can't do without beside a study.
COMMANDS: dict[str, tuple[Any, list[str]]] = {
    "worker": (WorkerOptions, []),
    "init": (InitOptions, []),
    "status": (StatusOptions, []),
    "confirm": (ConfirmOptions, []),
    "report": (ReportOptions, ["--out", "new.html"]),
    "export": (ExportOptions, ["--out", "new.py"]),
    "dashboard": (DashboardOptions, []),
}
MOVE = ["--from", "sqlite:///a.db", "--to", "sqlite:///b.db"]


def worker(*argv: str) -> WorkerOptions:
    return parse(WorkerOptions, argv, "worker", None)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("RUNES_"):
            monkeypatch.delenv(name)


def test_the_command_line_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNES_TRIALS", "7")
    monkeypatch.setenv("RUNES_SECONDS", "2.5")
    monkeypatch.setenv("RUNES_STORAGE", "sqlite:///environment.db")
    options = worker("--study", "runes", "--trials", "3")
    assert (options.trials, options.seconds) == (3, 2.5)
    assert options.storage == "sqlite:///environment.db"


def test_the_command_line_and_the_environment_beat_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load_study_file("quickstart")

    def url(*argv: str) -> str:
        options = parse(StatusOptions, ["--study", "quickstart", *argv], "status", None)
        return config.storage_url(options.storage)

    assert url() == "sqlite:///quickstart.db"
    monkeypatch.setenv("RUNES_STORAGE", "sqlite:///environment.db")
    assert url() == "sqlite:///environment.db"
    assert url("--storage", "sqlite:///option.db") == "sqlite:///option.db"
    monkeypatch.setenv("RUNES_STORAGE", "")
    assert url() == "sqlite:///quickstart.db"


@pytest.mark.parametrize("command", COMMANDS)
def test_variables_mean_the_same_in_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind, needed = COMMANDS[command]
    values = {
        "study": "mine",
        "storage": "sqlite:///environment.db",
        "data": tmp_path / "data",
        "artifacts": str(tmp_path),
        "device": "cuda:1",
        "threads": 3,
    }
    for name, value in values.items():
        monkeypatch.setenv(f"RUNES_{name.upper()}", str(value))
    options = vars(parse(kind, needed, command, None))
    assert {"study", "storage"} <= options.keys()
    assert {k: v for k, v in options.items() if k in values} == {
        k: v for k, v in values.items() if k in options
    }


def test_the_study_to_move_may_be_a_variable_unless_all_are_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUNES_STUDY", "mine")
    assert parse(MoveOptions, MOVE, "move", None).study == ("mine",)
    assert parse(MoveOptions, [*MOVE, "--study", "a", "--study", "b"], "move", None).study == (
        "a",
        "b",
    )
    options = parse(MoveOptions, [*MOVE, "--all"], "move", None)
    assert (options.study, options.all) == (None, True)


def test_drawings_are_named_on_the_command_line() -> None:
    options = worker("--study", "s")
    assert (options.data, options.alphabet, options.drawings, options.train) == (None,) * 4
    options = worker("--study", "s", "--drawings", "mine", "--train", "5")
    assert (options.drawings, options.train) == (Path("mine"), 5)
    options = worker("--study", "s", "--data", "there", "--alphabet", "Greek")
    assert (options.data, options.alphabet) == (Path("there"), "Greek")


@pytest.mark.parametrize(
    ("arguments", "variable", "message"),
    [
        (["--trials", "0"], None, "--trials is 0; write more than 0"),
        (["--seconds", "nan"], None, "--seconds is nan; write more than 0"),
        (["--seed", "-1"], None, "--seed is -1; write 0 or more"),
        (["--sampler", "tree"], None, "--sampler is 'tree'; write one of tpe, gp, random"),
        (["--seconds", "long"], None, "--seconds is 'long'; write a number"),
        ([], ("RUNES_SAMPLER", "cma"), "RUNES_SAMPLER is 'cma'; write one of tpe, gp, random"),
        ([], ("RUNES_WORKERS", "many"), "RUNES_WORKERS is 'many'; write a whole number"),
        ([], ("RUNES_THREADS", "0"), "RUNES_THREADS is 0; write more than 0"),
        (["--worker"], None, "argument --workers: expected one argument; --help lists the options"),
        (["--speed", "1"], None, "unrecognized arguments: --speed 1; --help lists the options"),
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
        worker("--study", "runes", *arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c != "init"]
)  # which may write a study file
def test_no_study_is_one_line(command: str) -> None:
    kind, needed = COMMANDS[command]
    with pytest.raises(UserError) as error:
        parse(kind, needed, command, None)
    study = "a name in studies/, or the path of a study file; also $RUNES_STUDY"
    assert str(error.value) == f"--study is missing; write {study}"


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """An option of each kind."""

    number: int = option("so many", 3, least=1)
    names: tuple[str, ...] = option("again and again", ())
    pair: tuple[Path, Path] | None = option("two", None)
    on: bool = option("a switch", False, excludes="group")
    off: bool = option("another", False, excludes="group")
    source: str = option("a source", "here", flag="--from", variable=True)
    percent: float = option("50 % of it", 0.5)


def test_each_kind_of_option_is_read_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*argv: str) -> Kinds:
        return parse(Kinds, argv, "kinds", None)

    assert read() == Kinds()
    assert read("--names", "a", "--names", "b").names == ("a", "b")
    assert read("--pair", "a", "b").pair == (Path("a"), Path("b"))
    assert read("--on").on is True
    assert read("--from", "there").source == "there"
    monkeypatch.setenv("RUNES_FROM", "elsewhere")
    assert read().source == "elsewhere"
    with pytest.raises(UserError, match="--off: not allowed with argument --on"):
        read("--on", "--off")
    with pytest.raises(UserError, match="--number is 0; write 1 or more"):
        read("--number", "0")


def test_help_names_defaults_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Kinds, ["--help"], "kinds", "All kinds.", "The end.")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "python -m hpo.kinds" in text
    assert "so many (default: 3)" in text
    assert "50 % of it (default: 0.5)" in text
    assert "a source (default: here); also $RUNES_FROM" in text
    assert text.endswith("The end.")


def test_samplers_are_those_that_a_study_file_may_name() -> None:
    assert tuple(REGISTRY) == SAMPLERS
