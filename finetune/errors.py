"""Errors that people meet, and the one place where a command reports them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from .terminal import printable

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141


class UserError(Exception):
    """Bad input.  The message is one line that says what was wrong, where, and what to write."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit: 0, 2 for bad input, 130 when interrupted.

    Characters that the output's encoding lacks are written as question marks. If the reader of the
    output is gone, the command ends quietly with the exit code of SIGPIPE.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            code = main() or 0
        except UserError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            code = EXIT_BAD_INPUT
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code = EXIT_INTERRUPTED
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = EXIT_NO_READER
    except OSError as error:
        if error.filename is None:
            raise
        reason = f"{printable(str(error.filename))}: {error.strerror}"
        print(f"error: {reason}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    sys.exit(code)
