"""Measure how fast this worker trains, to compare the workers of a study."""

from __future__ import annotations

import time

import torch

from finetune.machine.device import training_device
from finetune.model.unet import ConditionalDiffusionUNet

_BATCH, _ROUNDS = 8, 4


def steps_per_second() -> float:
    """Training steps a second of the course's network with a batch of eight: the best of a few.

    It takes a tenth of a second or two, on the process's own threads, and leaves the process's
    random numbers alone.
    """
    device = training_device(torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        network = ConditionalDiffusionUNet().to(device)
        x = torch.rand(_BATCH, 1, 28, 28, device=device)
    t = torch.full((_BATCH, 1, 1, 1), 0.5, device=device)
    c = torch.zeros(_BATCH, dtype=torch.long, device=device)
    shortest_s = float("inf")
    for _ in range(_ROUNDS):  # the first is slower
        start = time.perf_counter()
        network(x, t, c).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        shortest_s = min(shortest_s, time.perf_counter() - start)
    return float(f"{1 / shortest_s:.3g}")
