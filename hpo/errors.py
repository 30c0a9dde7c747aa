"""Errors that people meet, exit codes, and the one place where a command reports an error.

`finetune` has commands of its own and must work without `hpo`, so most definitions are there, with
those of what commands write.  Every other module of `hpo` imports them from here.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable

from finetune import errors
from finetune.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_NO_READER, UserError
from finetune.outputs import check_out, write_whole
from finetune.terminal import printable

__all__ = [
    "EXIT_BAD_INPUT",
    "EXIT_CODES",
    "EXIT_DATABASE_AWAY",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_NO_READER",
    "EXIT_OK",
    "DatabaseAwayError",
    "UserError",
    "check_out",
    "printable",
    "run_command",
    "write_whole",
]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_DATABASE_AWAY = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed later

EXIT_CODES = {
    EXIT_OK: "The work is done, or a scheduler asked it to stop (SIGTERM, SIGUSR1, SIGHUP).",
    EXIT_FAILED: "The input was good, the work was not: a proof, a measurement or a worker failed.",
    EXIT_BAD_INPUT: "A mistake in what the command was given. The same command fails again.",
    EXIT_DATABASE_AWAY: "The database stayed away or locked. The same command may succeed later.",
    EXIT_INTERRUPTED: "Ctrl-C.",
    EXIT_NO_READER: "Nobody reads the output any more, such as after `| head`.",
}


class DatabaseAwayError(UserError):
    """The database did not answer for as long as it was waited for."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit with one of `EXIT_CODES`.

    An error is one line on standard error; with ``--verbose`` its traceback comes before it.
    """

    def reported() -> int | None:
        if sys.platform == "win32":
            raise UserError("runes needs Linux or macOS; on Windows, run it in WSL or a container")
        try:
            return main()
        except UserError as error:
            if logging.getLogger("hpo").isEnabledFor(logging.DEBUG):
                traceback.print_exception(error)
            if not isinstance(error, DatabaseAwayError):
                raise
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return EXIT_DATABASE_AWAY

    errors.run_command(reported)
