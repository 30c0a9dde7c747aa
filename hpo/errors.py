"""Errors that people meet, exit codes, and the one place where a command reports an error.

`finetune` has commands of its own and must work without `hpo`, so the definitions are there, with
those of what commands write.  Every other module of `hpo` imports them from here.
"""

from finetune.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError, run_command
from finetune.outputs import check_out, write_whole
from finetune.terminal import printable

__all__ = [
    "EXIT_BAD_INPUT",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "UserError",
    "check_out",
    "printable",
    "run_command",
    "write_whole",
]

EXIT_FAILED = 1  # the input was good, the work was not: what a command proves or measures failed
