"""Join a study and run trials until its budget is spent."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from ..arguments import parse
from ..errors import run_command
from ..process.logging import info, start_log
from ..process.signals import StopError, raise_on_signals
from .options import WorkerOptions
from .run import run_worker

# Optuna and torch take seconds to import; `--help` needs neither.


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(WorkerOptions, argv, "worker", __doc__)
    raise_on_signals()
    start_log(f"{socket.gethostname()}:{os.getpid()}")
    try:
        if options.workers > 1 and not options.dry_run:
            from .pool import run_pool

            return run_pool(options)
        return run_worker(options)
    except StopError as stop:
        info(f"stopped by {stop}")
        return stop.exit_code


if __name__ == "__main__":
    run_command(main)
