"""Which processor a worker uses, and how cores are shared out."""

from __future__ import annotations

import os
import re

from ..errors import UserError


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(workers: int) -> int:
    """Threads of each of so many workers: none idle, none fought over, at least one each."""
    return max(1, n_cores() // workers)


def choose_device(device: str | None) -> None:
    """Make this process use a device; to be called before torch is imported.

    What torch can't see it can't use, in whichever of its ways: that is all that is done here.

    Raises:
        UserError: it is no device's name.
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
        # N counts the devices that were left to this process.
        names = visible.split(",")
        if int(match[1]) >= len(names):
            raise UserError(f"--device is {device}; CUDA_VISIBLE_DEVICES leaves {len(names)}")
        os.environ["CUDA_VISIBLE_DEVICES"] = names[int(match[1])]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = match[1]


def check_device(device: str | None) -> None:
    """See, with torch at hand, that the device is there.

    Raises:
        UserError: there is none.
    """
    import torch

    if device and device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device is {device}, and torch finds no such GPU; write cpu")
