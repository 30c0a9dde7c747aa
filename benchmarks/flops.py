"""Arithmetic: what a network needs for one image, and what a machine can do in a second.

A multiplication with its addition counts as two.  Only convolutions are counted, products with
padding included, as is usual; norms and the like add about one part in a hundred.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.canvas import IMAGE_SIZE
from finetune.machine.device import training_device

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MATRIX_ROWS = {"cpu": 2048, "cuda": 8192}
_WARM_UP = 2  # calls that are not timed
# The network's own bulk: 128 channels at 7x7, here of 64 images at once.
_IMAGES, _CHANNELS, _PIXELS, _KERNEL = 64, 128, 7, 3


@dataclass(frozen=True)
class Flops:
    """Operations for one image."""

    forward: int
    training: int  # forward and backward


def count_flops(model: nn.Module) -> Flops:
    """Count from the shapes of ``model(x_t, t, c)``, as its parameters ask for gradients.

    The gradients of a convolution's weight and of its input each cost what it costs itself.
    A weight that is frozen needs none, nor an input that comes before all that trains: the
    first convolution's input does need one while the class embedding, which is part of it, trains.
    """
    model = copy.deepcopy(model).train()
    forward = training = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal forward, training
        assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        # Every input pixel of a transposed convolution meets the kernel, else every output pixel.
        transposed = isinstance(module, nn.ConvTranspose2d)
        numbers = inputs[0].numel() if transposed else output.numel()
        facing = module.out_channels if transposed else module.in_channels
        taps = module.weight.shape[2] * module.weight.shape[3]
        flops = 2 * numbers * (facing // module.groups) * taps
        forward += flops
        training += flops * (1 + module.weight.requires_grad + inputs[0].requires_grad)

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(count)
    device = next(model.parameters()).device
    t, c = torch.zeros(1, 1, 1, 1, device=device), torch.zeros(1, dtype=torch.long, device=device)
    with torch.enable_grad():
        model(torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE, device=device), t, c)
    return Flops(forward, training)


@dataclass(frozen=True)
class Peak:
    """The fastest of many calls, in GFLOP/s."""

    matrices: float  # a large matrix product
    convolution: float  # 3x3, 128 channels at 7x7, 64 images, forward


def measure_peak(precision: str, threads: int, seconds: float) -> Peak:
    """What this machine reaches in ``precision`` ("fp32" or "bf16"), each in so many seconds."""
    torch.set_num_threads(threads)
    device, dtype = training_device(torch.device("cpu")), _DTYPES[precision]
    n = _MATRIX_ROWS[device.type]
    a = torch.ones(n, n, device=device, dtype=dtype)
    x = torch.ones(_IMAGES, _CHANNELS, _PIXELS, _PIXELS, device=device, dtype=dtype)
    weight = torch.ones(_CHANNELS, _CHANNELS, _KERNEL, _KERNEL, device=device, dtype=dtype)
    x, weight = (v.contiguous(memory_format=torch.channels_last) for v in (x, weight))
    products = _IMAGES * _PIXELS**2 * _CHANNELS**2 * _KERNEL**2
    with torch.inference_mode():
        matrices_s = _fastest_s(lambda: a @ a, device, seconds)
        convolution_s = _fastest_s(lambda: F.conv2d(x, weight, padding=1), device, seconds)
    return Peak(2e-9 * n**3 / matrices_s, 2e-9 * products / convolution_s)


def _fastest_s(call: Callable[[], Tensor], device: torch.device, seconds: float) -> float:
    for _ in range(_WARM_UP):
        call()
    fastest = float("inf")
    end = time.perf_counter() + seconds
    while fastest == float("inf") or time.perf_counter() < end:
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
