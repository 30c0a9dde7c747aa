"""Errors that people meet, and the one place where a command reports them."""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Bad input.  The message is one line: what was wrong, where, what to write instead."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit: 0, 2 for bad input, 130 when interrupted."""
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.stdout.flush()
    sys.exit(code)
