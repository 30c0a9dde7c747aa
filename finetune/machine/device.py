"""The machine at hand: on which device to train, in which number format, in whose settings."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

# bf16 must win by this much, so that timing noise can't flip the choice between two runs.
_BF16_MIN_SPEEDUP = 1.15
# Where bf16 takes this many times as long, one round tells, and no more are made: without hardware
# for it each is a large part of what the choice costs.
_HOPELESS = 5
_ROUNDS = 4

M = TypeVar("M", bound=nn.Module)


def training_device(home: torch.device) -> torch.device:
    """Where to train a network that is at ``home``: a GPU when there is one."""
    return torch.device("cuda") if home.type == "cpu" and torch.cuda.is_available() else home


def is_gpu_failure(error: RuntimeError) -> bool:
    """Whether the GPU, not the run, is at fault: no memory, or a device that torch can't use."""
    words = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        sign in words for sign in ("out of memory", "cuda", "cublas", "cudnn")
    )


@contextmanager
def standard_settings(device: torch.device) -> Iterator[None]:
    """Run with torch's own settings, whatever the process has; they are put back at the end.

    New tensors are float32 and on the CPU unless told otherwise, gradients are recorded, and
    no automatic casting is done on ``device``.  Where deterministic algorithms are asked for,
    an operation that has none runs all the same.
    """
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        if torch.are_deterministic_algorithms_enabled():
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            stack.callback(torch.use_deterministic_algorithms, True, warn_only=warn_only)
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message=".*deterministic")
            torch.use_deterministic_algorithms(True, warn_only=True)
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def channels_last(model: M, device: torch.device) -> M:
    """``model`` moved to ``device`` in float32 with the memory format in which it is fastest."""
    model.to(device, torch.float32)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which to run a forward pass in ``precision`` ("fp32" or "bf16")."""
    # No cache of weights in bf16: inside another autocasting block it would outlive the step, and
    # all steps would run on the first weights.
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
    )


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into "fp32" or "bf16" by a short measurement, made once per process."""
    return _fastest_precision(device.type) if precision == "auto" else precision


@cache
def _fastest_precision(device_type: str) -> str:
    """bf16 without hardware for it is several times slower than fp32: measured, not assumed.

    Takes 0.2 s on two cores with bf16 units, about 1 s without.  Draws no random numbers.
    """
    device = torch.device(device_type)
    if device_type == "cuda" and not torch.cuda.is_bf16_supported():
        return "fp32"
    # By turns: a machine may be slow for a while, and then it is so for both.
    fp32, bf16 = [], []
    for _ in range(_ROUNDS):
        fp32 += bulk_seconds(device, "fp32", runs=2)
        bf16 += bulk_seconds(device, "bf16", runs=2)
        if min(bf16) > _HOPELESS * min(fp32):
            break
    return "bf16" if min(fp32) > _BF16_MIN_SPEEDUP * min(bf16) else "fp32"


def bulk_seconds(device: torch.device, precision: str, runs: int) -> list[float]:
    """How long a layer of the network's bulk takes, forward and backward, in each of so many runs.

    The bulk is eight layers of 128 channels at 7x7.
    """
    x = torch.ones(16, 128, 7, 7, device=device, dtype=torch.float32)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.ones(128, 128, 3, 3, device=device, dtype=torch.float32, requires_grad=True)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        with torch.enable_grad(), autocast(device, precision):
            y = F.conv2d(x, weight, padding=1)
        torch.autograd.grad(y.float().sum(), (x, weight))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds
