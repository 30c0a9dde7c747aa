"""A CPU's cores: two threads compute half a step each, while one draws ahead.

Torch's own threads would wait for each other after each of a step's thousand operations; these meet
once a step.  The numbers do not depend on how many cores there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Let torch use one thread on a CPU; the process's own number is put back."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def step_threads(device: torch.device) -> Iterator[ThreadPoolExecutor | None]:
    """Three threads to draw and to compute on a CPU, for which torch uses one each; or none."""
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
