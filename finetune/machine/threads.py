"""How a call uses a CPU's cores: one computes steps, another draws what they learn from.

A step on 16 small images is some thousand short operations.  Torch's threads meet after each and
wait by spinning.  On an idle machine a second thread makes steps about half as fast again; where
another program wants its core, steps take many times as long.  One thread avoids that, and its
numbers do not depend on how many cores there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute with one thread on a CPU; the process's own number is put back."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def drawing_thread(device: torch.device) -> Iterator[ThreadPoolExecutor | None]:
    """A thread that works beside the training steps; none on a GPU, which does one by one."""
    if device.type != "cpu":
        yield None
        return
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
