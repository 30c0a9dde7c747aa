"""Who only asks how a command is used waits for no library that takes long to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLOW = {"torch", "optuna", "scipy"}


def commands() -> list[str]:
    """Modules that are run by ``python -m``."""
    paths = [path for package in ("finetune", "hpo") for path in (ROOT / package).rglob("*.py")]
    runs = [p.relative_to(ROOT) for p in paths if "\n    run_command(" in p.read_text()]
    return sorted(".".join(p.with_suffix("").parts).removesuffix(".__main__") for p in runs)


def imported(*arguments: str) -> set[str]:
    """Top-level packages that Python imports for a command line, which must be a good one."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


def test_there_are_commands() -> None:
    some = {"hpo.init", "hpo.worker", "hpo.status", "hpo.export", "hpo.report", "hpo.move"}
    assert some | {"finetune.pretrain"} <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_help_imports_nothing_slow(command: str) -> None:
    packages = imported("-m", command, "--help")
    assert "argparse" in packages  # it says what was imported
    assert not packages & SLOW


def test_a_studys_status_needs_no_torch(tmp_path: Path) -> None:
    make = (
        "import sys\n"
        "from hpo.errors import UserError\n"
        "from hpo.study.config import load_study_file\n"
        "from hpo.study.create import create\n"
        "from hpo.status import main\n"
        f"url = 'sqlite:///{tmp_path}/s.db'\n"
        "create(load_study_file('quickstart'), url, {'data': 'none'})\n"
        "main(['--study', 'quickstart', '--storage', url])\n"
    )
    packages = imported("-c", make)
    assert "optuna" in packages
    assert "torch" not in packages
