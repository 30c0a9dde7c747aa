"""The door to all commands: their names, their options, their exit codes, completion."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpo.arguments import parse
from hpo.commands import first_line, load, main, modules
from hpo.completion import command_parser, whole_parser
from hpo.errors import EXIT_CODES, DatabaseAwayError, UserError, run_command
from hpo.process.logging import no_bars
from hpo.worker.options import WorkerOptions
from hpo.worker.pool import passed_on

REPO = Path(__file__).parents[2]
MODULES = modules()
# Options that mean the same wherever they are, with a variable RUNES_<NAME>.
SHARED = ("study", "storage", "data", "artifacts", "device", "threads")
# A database server that is not there, and what each command that reads one needs besides.
AWAY = "postgresql://somebody@127.0.0.1:1/nothing"
READERS = {
    **dict.fromkeys(("worker", "status", "confirm", "pause", "resume", "stop"), ()),
    "budget": ("--trials", "9"),
    "compare": ("0", "1"),
    "drop": ("--trial", "0", "--why", "x"),
    "enqueue": ("lr=0.01",),
    "export": ("--out", "new.py"),
    "init": ("--wait", "0"),
    "move": ("--to", "sqlite:///copy.db"),
    "report": ("--out", "new.html"),
}


def options_of(name: str) -> list[argparse.Action]:
    return command_parser(name, MODULES[name])._actions


def test_the_list_has_every_command_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    started = {
        path.parent.name if path.stem == "__main__" else path.stem
        for path in (*(REPO / "hpo").glob("*.py"), *(REPO / "hpo").glob("*/__main__.py"))
        if "run_command(main)" in path.read_text("utf-8") and path.stem != "errors"
    }
    assert set(MODULES) == started | {"challenge", "pretrain"}
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for name, module in MODULES.items():
        line = first_line(module)
        assert len(line) > 20 and line[0].isupper(), module
        assert re.search(rf"^  {name} +{re.escape(line)}$", out, re.MULTILINE)


def test_a_command_that_is_misspelt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["workr"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: no command 'workr'; did you mean worker?\n"


def test_a_command_is_run_with_the_rest_of_the_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hpo", "status", "--study", "nowhere.toml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (2, "error: nowhere.toml: no such study file\n")


@pytest.mark.parametrize("name", MODULES)
def test_every_command_says_its_version_and_reads_the_same_variables(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        load(MODULES[name]).main(["--version"])
    assert stop.value.code == 0
    assert re.fullmatch(r"runes( \d+\.\d+\.\d+|, not installed)\n", capsys.readouterr().out)
    for action in options_of(name):
        # Two values, of a copy's two ends, are another thing under the same name.
        if action.dest in SHARED and action.nargs != 2:
            assert f"${'RUNES_' + action.dest.upper()}" in str(action.help), action.dest


def test_a_pool_passes_on_how_much_is_logged() -> None:
    options = WorkerOptions(study="s")
    logger = logging.getLogger("hpo")
    before = logger.level
    try:
        for level, flag in ((logging.DEBUG, ["-v"]), (logging.INFO, []), (logging.WARNING, ["-q"])):
            logger.setLevel(level)
            assert passed_on(options, {})[0] == flag
    finally:
        logger.setLevel(before)


@pytest.mark.parametrize("name", READERS)
def test_a_database_that_stays_away_is_no_mistake(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in [v for v in os.environ if v.startswith("RUNES_")]:
        monkeypatch.delenv(variable)
    shutil.copy(REPO / "tests" / "cheap.toml", tmp_path / "study.toml")
    monkeypatch.setattr("hpo.storage.open._BRIEF_RETRY_S", 0.0)
    module = load(MODULES[name])
    named = ["--study", "study.toml", "--storage", AWAY]
    if name == "move":
        named = ["--all", "--from", AWAY]
    with pytest.raises(DatabaseAwayError, match=r"^[^\n]*127\.0\.0\.1:1/nothing[^\n]*$"):
        module.main([*named, *READERS[name]])


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("a mistake"), 2), (DatabaseAwayError("it is away"), 75)]
)
def test_the_exit_code_tells_a_mistake_from_a_database_that_is_away(
    error: UserError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(fail)
    assert stop.value.code == code
    assert code in EXIT_CODES
    assert capsys.readouterr().err == f"error: {error}\n"


def test_verbose_shows_the_traceback_behind_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise UserError("a mistake")

    monkeypatch.setattr(logging.getLogger("hpo"), "level", logging.DEBUG)
    logging.getLogger("hpo").manager._clear_cache()  # type: ignore[attr-defined]
    with pytest.raises(SystemExit):
        run_command(fail)
    logging.getLogger("hpo").manager._clear_cache()  # type: ignore[attr-defined]
    error = capsys.readouterr().err
    assert error.startswith("Traceback") and "in fail" in error
    assert error.endswith("\nerror: a mistake\n")


def test_windows_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: 0)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error == "error: runes needs Linux or macOS; on Windows, run it in WSL or a container\n"


def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    import shtab

    script = tmp_path / "runes.bash"
    script.write_text(shtab.complete(whole_parser(), shell="bash"))
    asked = """
        source runes.bash
        complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=();
          _shtab_runes; echo "${COMPREPLY[@]}"; }
        complete_words runes wor
        complete_words runes status --st
    """
    done = subprocess.run(["bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["worker", "--study --storage"]


@pytest.mark.parametrize(("flag", "disable"), [("-q", True), ("-v", None)])
def test_quiet_shows_no_bars(flag: str, disable: bool | None) -> None:
    logger = logging.getLogger("hpo")
    before = logger.level
    try:
        parse(WorkerOptions, ["--study", "s", flag], "worker", None)
        assert no_bars() is disable
    finally:
        logger.setLevel(before)
