"""How a call uses a CPU's cores: two compute half a step each, while a batch is drawn ahead.

A step on 32 small images is some thousand short operations.  Torch's threads meet after each and
wait by spinning: where another program wants their core, steps take many times as long.  Here each
thread computes the gradients of half of the images with one of torch's threads, and they meet
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
def two_threads(device: torch.device) -> Iterator[ThreadPoolExecutor | None]:
    """Two threads beside the caller's, to draw and to compute on a CPU; none on a GPU.

    Each of the three, the caller's too, has one of torch's threads.
    """
    if device.type != "cpu":
        yield None
        return
    with (
        one_thread(device),
        ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
