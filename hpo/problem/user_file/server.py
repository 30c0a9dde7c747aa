"""Forks a clean process for each call of a user's file: a script, started by `runner`.

    python -m hpo.problem.user_file.server FD

It imports torch once, which takes seconds.  It has a single thread, because a process with several
can't be forked safely.  On the socket FD it receives a pair of sockets for each call, and it ends
when its worker closes the other side.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys

import torch

from .supervisor import supervise


def main(number: int) -> None:
    requests = socket.socket(fileno=number)
    # Torch's first optimizer imports as much again.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors
    gc.collect()
    gc.freeze()  # the collector then does not write to pages that forks share
    requests.sendall(b"ready")
    while True:
        message, files, _, _ = socket.recv_fds(requests, 1, 2)
        if not message or len(files) != 2:
            return
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            supervise(*(socket.socket(fileno=file) for file in files))
        for file in files:
            os.close(file)


if __name__ == "__main__":
    main(int(sys.argv[1]))
