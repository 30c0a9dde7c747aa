"""Errors that people meet, exit codes, and the one place where a command reports an error.

`finetune` has commands of its own and must work without `hpo`, so the definitions are there.
Every other module of `hpo` imports them from here.
"""

from finetune.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError, run_command

__all__ = ["EXIT_BAD_INPUT", "EXIT_FAILED", "EXIT_INTERRUPTED", "UserError", "run_command"]

EXIT_FAILED = 1  # the input was good, the work was not: what a command proves or measures failed
