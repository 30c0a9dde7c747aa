"""The commands by their names, and the console script ``runes`` that runs them.

A module of this package, or a package with `__main__`, is a command if it has a function ``main``.
Its docstring's first line is what the list of commands says.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from finetune.arguments import PACKAGE, version

from .errors import UserError, run_command

_HERE = Path(__file__).parent
_OF_THE_METHOD = ("challenge", "pretrain")  # commands of `finetune` that users need
_INTRODUCTION = f"""\
usage: {PACKAGE} COMMAND [OPTIONS], or python -m MODULE [OPTIONS]

Commands; {PACKAGE} COMMAND --help lists the options of one:"""
_END = f"\n{PACKAGE} --version prints the version. Exit codes are in docs/reference/commands.md."


def modules() -> dict[str, str]:
    """The module of each command, by the command's name."""
    files = [*_HERE.glob("*.py"), *_HERE.glob("*/__main__.py")]
    own = sorted(
        file.stem if file.parent == _HERE else file.parent.name
        for file in files
        if file.parent / file.stem != _HERE / "commands" and "\ndef main(" in _text(file)
    )
    return {n: f"hpo.{n}" for n in own} | {n: f"finetune.{n}" for n in _OF_THE_METHOD}


def first_line(module: str) -> str:
    """What a command's docstring says first."""
    file = _HERE.parent / _path(module)
    return (ast.get_docstring(ast.parse(_text(file))) or "").split("\n")[0]


def load(module: str) -> ModuleType:
    """A command's module, with its function ``main``."""
    return import_module(".".join(_path(module).with_suffix("").parts))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that ``argv`` names first, with the rest as its options."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    known = modules()
    if name in known:
        sys.argv = [f"{PACKAGE} {name}", *rest[:-1]]
        if not sys.flags.safe_path:
            sys.path.insert(0, "")  # as `python -m` does: a study's own classes lie where it starts
        run_command(lambda: load(known[name]).main())
    run_command(lambda: _about(name, known))


def _about(name: str, known: Mapping[str, str]) -> int:
    if name in ("", "-h", "--help"):
        print(_INTRODUCTION)
        width = max(map(len, known))
        for command, module in known.items():
            print(f"  {command:<{width}}  {first_line(module)}")
        print(_END)
    elif name == "--version":
        print(version())
    else:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"{PACKAGE} --help lists them"
        raise UserError(f"no command {name!r}; {hint}")
    return 0


def _path(module: str) -> Path:
    """Of a command's file, from the directory that has the packages."""
    base = Path(*module.split("."))
    return base / "__main__.py" if (_HERE.parent / base).is_dir() else base.with_suffix(".py")


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
