"""Command lines of this package: mistakes are one line, and numbers have bounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from .errors import UserError

LARGEST_SEED = 2**32 - 1  # numpy's generators take no larger one
_SHOWN = 40  # characters of a number that somebody wrote


class Parser(argparse.ArgumentParser):
    """Tells mistakes as everything here does: in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


def whole(least: int, most: int) -> Callable[[str], int]:
    """The type of an option that is a whole number in [least, most]."""

    def read(text: str) -> int:
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown!r} is no whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{shown} is not in {least} to {most}")
        return value

    return read
