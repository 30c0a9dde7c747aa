"""Command lines: errors in one line, numbers with bounds, and ``--version`` for each command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .errors import UserError

LARGEST_SEED = 2**32 - 1  # largest seed of numpy's generators
PACKAGE = "runes"  # what pip installs, and the console script
_SHOWN = 40  # most characters of a user's number in a message


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, and has ``--version``.

    Args:
        module: the command's module, for the program's name in the help.
    """

    def __init__(self, module: str, **how: Any) -> None:
        super().__init__(prog=_program(module), **how)
        self.add_argument("--version", action=_Version, help="print the version and exit")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


class _Version(argparse.Action):
    """Looks up the version only when asked, because `importlib.metadata` is slow to import."""

    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:  # noqa: A002
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version())
        parser.exit()


def version() -> str:
    """The package and its version, such as ``runes 0.1.0``."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return f"{PACKAGE} {installed(PACKAGE)}"
    except PackageNotFoundError:
        return f"{PACKAGE}, not installed"


def brief(text: str) -> str:
    """A user's text, shortened for a message."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def whole(least: int, most: int) -> Callable[[str], int]:
    """An argparse type: a whole number in [least, most]."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{brief(text)!r} is no whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{brief(text)} is not in {least} to {most}")
        return value

    return read


def _program(module: str) -> str:
    """The program's name: that of the console script, or ``python -m`` with the module."""
    started = sys.argv[0] if sys.argv else ""
    return started if started.startswith(f"{PACKAGE} ") else f"python -m {module}"
