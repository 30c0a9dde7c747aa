"""Which number format a training step should use on the machine at hand."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

# bf16 must win by this much, so that timing noise can't flip the choice between two runs.
_BF16_MIN_SPEEDUP = 1.3


M = TypeVar("M", bound=nn.Module)


def channels_last(model: M, device: torch.device) -> M:
    """``model`` moved to ``device`` in float32 with the memory format in which it is fastest."""
    model.to(device, torch.float32)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which to run a forward pass in ``precision`` ("fp32" or "bf16")."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into "fp32" or "bf16" by a short measurement, made once per process."""
    return _fastest_precision(device.type) if precision == "auto" else precision


@cache
def _fastest_precision(device_type: str) -> str:
    """bf16 without hardware for it is several times slower than fp32: measured, not assumed.

    Takes about 0.2 s on two cores.  Draws no random numbers.
    """
    device = torch.device(device_type)
    if device_type == "cuda" and not torch.cuda.is_bf16_supported():
        return "fp32"
    # The network's own bulk: 128 channels at 7x7.
    x = torch.ones(16, 128, 7, 7, device=device, dtype=torch.float32)
    weight = torch.ones(128, 128, 3, 3, device=device, dtype=torch.float32, requires_grad=True)

    def seconds(precision: str) -> float:
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            with torch.enable_grad(), autocast(device, precision):
                y = F.conv2d(F.conv2d(x, weight, padding=1), weight, padding=1)
            torch.autograd.grad(y.float().sum(), weight)
            if device_type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
        return best

    return "bf16" if seconds("fp32") > _BF16_MIN_SPEEDUP * seconds("bf16") else "fp32"
