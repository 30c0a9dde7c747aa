"""How many threads to compute with on a CPU that may not be ours alone.

Torch's threads meet after every operation, and wait for each other by spinning.  Where other
programs want the same cores, or a container gets less time than its cores could give, two threads
can be several times slower than one.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .device import bulk_seconds

# Fewer threads must win by this much, so that timing noise can't flip the choice between two runs.
_LEAST_SPEEDUP = 1.3
_RUNS = 7
_QUOTA_FILES = (  # of control groups, version 2 and 1
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)


@contextmanager
def fastest_threads(device: torch.device) -> Iterator[None]:
    """Compute with torch's threads, or with fewer where that is faster; they are put back.

    Two choices take 0.2 s on two idle cores, and 1 s on two busy ones.  Draws no random numbers.
    """
    most = torch.get_num_threads()
    if device.type != "cpu" or most == 1:
        yield
        return
    try:
        threads = min(most, cpu_quota() or most)
        took_s = _seconds(threads)
        while threads > 1 and _LEAST_SPEEDUP * (fewer_s := _seconds(threads // 2)) < took_s:
            threads, took_s = threads // 2, fewer_s
        torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(most)


def cpu_quota() -> int | None:
    """Cores' worth of time that the process's container is given, at least 1; None: no limit.

    Torch counts cores without a look at it.
    """
    for files in _QUOTA_FILES:
        try:
            words = " ".join(Path(file).read_text() for file in files).split()
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # there is none, or it is "max"
            continue
        if quota > 0 and period > 0:
            return max(1, round(quota / period))
    return None


def _seconds(threads: int) -> float:
    """Median time of a layer of the network's bulk."""
    torch.set_num_threads(threads)
    return statistics.median(bulk_seconds(torch.device("cpu"), "fp32", _RUNS))
