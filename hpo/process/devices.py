"""The device that a process uses, and its number of threads."""

from __future__ import annotations

import os
import platform
import re
import resource
from pathlib import Path

from ..errors import UserError

_WORKER_BYTES = 300 * 2**20  # least memory of a worker, once torch is imported
_WORKER_HANDLES = 3  # file handles that a pool needs for each worker
_OWN_HANDLES = 64


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory_gb() -> float:
    """Memory that this process's machine or container has, in GiB."""
    limits = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups v2 and v1
        try:
            limits.append(float(Path("/sys/fs/cgroup", name).read_text()))
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
    return min(limits) / (1 << 30)


def share_cores(workers: int) -> int:
    """Threads for each of ``workers`` processes: an equal share of the cores, at least one."""
    return max(1, n_cores() // workers)


def check_room(workers: int) -> None:
    """Check that the machine can hold so many workers.

    Raises:
        UserError: there is not enough memory, or there are not enough file handles for the pool.
    """
    memory = int(machine_memory_gb() * 2**30)
    handles = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    of_memory, of_handles = memory // _WORKER_BYTES, (handles - _OWN_HANDLES) // _WORKER_HANDLES
    if workers > of_memory:
        raise UserError(
            f"--workers is {workers}; this machine's {memory / 2**30:.0f} GiB hold {of_memory} of "
            f"{_WORKER_BYTES / 2**30:.1g} GiB each: write at most that many"
        )
    if workers > of_handles:
        raise UserError(
            f"--workers is {workers}; the limit of {handles} open files allows {of_handles}: "
            "raise it by ulimit -n, or write fewer"
        )


def choose_device(device: str | None) -> None:
    """Restrict this process to a device.  Call it before torch is imported.

    It sets CUDA_VISIBLE_DEVICES, because torch has several ways to choose a device and all of them
    obey that variable.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:N`` or None for torch's own choice.

    Raises:
        UserError: ``device`` is not the name of a device.
    """
    if device is None or device == "cuda":
        return
    match = re.fullmatch(r"cpu|cuda:(\d+)", device)
    if match is None:
        raise UserError(f"--device is {device!r}; write cpu, cuda or cuda:N")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if match[1] is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif visible:
        # N counts the devices that this process sees, not all of the machine's.
        names = visible.split(",")
        if int(match[1]) >= len(names):
            raise UserError(f"--device is {device}; CUDA_VISIBLE_DEVICES leaves {len(names)}")
        os.environ["CUDA_VISIBLE_DEVICES"] = names[int(match[1])]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = match[1]


def check_device(device: str | None) -> None:
    """Check, with torch, that the device exists.

    Raises:
        UserError: it does not.
    """
    import torch

    if device and device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device is {device}, and torch finds no such GPU; write cpu")


def describe_processor() -> str:
    """The processor's name, as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
