"""The machine: the device to train on, the number format, and torch's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def training_device(home: torch.device) -> torch.device:
    """The device to train a network on that is at ``home``: a GPU if there is one."""
    return torch.device("cuda") if home.type == "cpu" and torch.cuda.is_available() else home


def on_gpu_or_cpu(model: nn.Module, train: Callable[[torch.device], T]) -> T:
    """Run ``train`` on the best device for ``model``, or on the CPU if that fails."""
    device = training_device(next(model.parameters()).device)
    try:
        return train(device)
    except RuntimeError as error:
        if device.type == "cpu" or not is_gpu_failure(error):
            raise
    return train(torch.device("cpu"))


def is_gpu_failure(error: RuntimeError) -> bool:
    """Whether the GPU caused the error: out of memory, or a device that torch can't use."""
    is_told = any(s in str(error).lower() for s in ("out of memory", "cuda", "cublas", "cudnn"))
    return is_told or isinstance(error, torch.cuda.OutOfMemoryError)


@contextmanager
def standard_settings(device: torch.device) -> Iterator[None]:
    """Run with torch's default settings; the process's own are restored at the end."""
    dtype, mode = torch.get_default_dtype(), torch.get_deterministic_debug_mode()
    on_cpu = torch.empty(0).device.type == "cpu"  # a device context slows every operation down
    try:
        torch.set_default_dtype(torch.float32)
        torch.set_deterministic_debug_mode(0)
        with (
            nullcontext() if on_cpu else torch.device("cpu"),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_deterministic_debug_mode(mode)


def channels_last(model: M, device: torch.device) -> M:
    """``model`` moved to ``device`` in float32 with the memory format in which it is fastest."""
    model.to(device, torch.float32)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which to compute in ``precision``, "auto", "fp32" or "bf16"."""
    bf16 = resolve_precision(precision, device) == "bf16"
    # Inside another autocasting block a cache of weights in bf16 would outlive the step.
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto" to "bf16" if the device has units for it, and else to "fp32"."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp32"
    # Not public before torch 2.9, where it is in `torch.cpu.get_capabilities()`.
    is_supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if device.type == "cpu" and is_supported() else "fp32"
