"""Forks Python processes that have imported already what takes seconds: run as a script by tests.

``nursery.py MODULE...`` imports the modules, then reads requests, a line of JSON each, and answers
with a line each:

- ``{"arguments": ["-m", "hpo.worker", ...], "cwd": ..., "env": ..., "out": ..., "err": ...}`` runs
  what ``python ARGUMENTS`` would, as a process of its own: ``-m MODULE``, ``-c CODE`` or a
  script, each with its arguments.  Output goes to these files.  The answer is its id;
- ``{"poll": PID}``: the answer is its exit code as `subprocess` has it, or null while it runs.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any


def serve() -> dict[str, Any]:
    """Answer requests until there are no more; in a process to be born, return what to run."""
    for line in sys.stdin:
        request = json.loads(line)
        answer: int | None
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                return dict(request)
        print(json.dumps(answer), flush=True)
    sys.exit(0)


def become(request: dict[str, Any]) -> None:
    """Be the process that was asked for."""
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(request[k], os.O_WRONLY | os.O_CREAT | os.O_APPEND) for k in ("out", "err")]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    # The other one has read ahead.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # Whoever runs the tests may have it ignored, as shells do for what runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "numpy" in sys.modules:  # whose random numbers begin anew in a new process
        sys.modules["numpy"].random.seed()
    kind, *rest = request["arguments"]
    if not sys.flags.safe_path:  # with which Python looks for modules nowhere but where they belong
        sys.path[0] = request["cwd"] if kind in ("-m", "-c") else str(Path(kind).parent)
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    if "torch" in sys.modules:  # whose first optimizer imports as much again
        torch = sys.modules["torch"]
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    gc.freeze()  # pages that nobody writes to are shared
    become(serve())


if __name__ == "__main__":
    main()
