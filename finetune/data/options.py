"""Options that name drawings, shared by the commands of this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import whole
from .futhorc import ALPHABET

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` does not need it
    from .runes import RuneSource


def add_drawings_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``, ``--alphabet``, ``--drawings`` and ``--train``; all default to None."""
    add = parser.add_argument
    add("--data", type=Path, help="directory of omniglot-py; also $RUNES_DATA")
    add("--alphabet", metavar="NAME", help=f"of Omniglot (default: {ALPHABET})")
    add(
        "--drawings",
        type=Path,
        metavar="DIR",
        help="your own drawings instead: PNG files, or a folder of them for each rune",
    )
    add(
        "--train",
        type=whole(1, 2**31 - 1),
        metavar="N",
        help="drawings of each rune that a call learns from (default: half)",
    )


def open_asked(arguments: argparse.Namespace) -> RuneSource:
    """Open the source that ``--source`` and the options above name.

    Raises:
        UserError: as in `finetune.data.runes.open_source`.
    """
    from .runes import open_source

    return open_source(
        arguments.source,
        arguments.data,
        alphabet=arguments.alphabet,
        drawings=arguments.drawings,
    )
