"""Threads on a CPU: two compute half a step each, and one draws ahead.

Torch's own threads would wait for each other after each of a step's thousand operations; these wait
once a step.  Results do not depend on the number of cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Let torch use one thread on a CPU; the process's own number is restored at the end."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def step_threads(device: torch.device) -> Iterator[ThreadPoolExecutor | None]:
    """A pool of three threads on a CPU, in each of which torch uses one; None on a GPU."""
    if device.type != "cpu":
        yield None
        return
    n_threads = torch.get_num_threads()
    with ThreadPoolExecutor(3, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            torch.set_num_threads(1)
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(n_threads)
