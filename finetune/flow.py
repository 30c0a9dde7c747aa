"""Rectified flow: straight lines from data (t=0) to noise (t=1).

Liu, Gong and Liu, "Flow Straight and Fast" (2022), equation 1, with time as the course has it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

VelocityModel = Callable[[Tensor, Tensor, Tensor], Tensor]
Method = Literal["euler", "heun"]


def interpolate(x: Tensor, e: Tensor, t: Tensor) -> Tensor:
    """The point at time ``t`` (B, 1, 1, 1) on the line from ``x`` to ``e``, both (B, C, H, W)."""
    return (1 - t) * x + t * e


def velocity(x: Tensor, e: Tensor) -> Tensor:
    """The line's velocity, the regression target: constant along the line."""
    return e - x


def image_losses(model: VelocityModel, x: Tensor, e: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """Rectified-flow loss of each image, (B,), averaged over its pixels.

    Args:
        model: ``model(x_t, t, c)``.
        x: images, (B, C, H, W).
        e: standard normal noise of the same shape.
        t: times in [0, 1), (B, 1, 1, 1).
        c: labels, (B,).
    """
    error = model(interpolate(x, e, t), t, c).float() - velocity(x, e)
    return error.square().flatten(1).mean(1)


def stratified_times(n: int, generator: torch.Generator) -> Tensor:
    """``n`` times in [0, 1), one uniform in each of ``n`` equal bins, in random order, (n,)."""
    u = torch.rand(n, generator=generator, device=generator.device)
    order = torch.randperm(n, generator=generator, device=generator.device)
    # float32 can round (n - 1 + u) / n up to 1; the network is defined below it.
    return ((order + u) / n).clamp(max=1 - 2**-24)


def logit_normal_times(n: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """``n`` times in (0, 1) whose logits are N(mean, std^2), stratified, (n,).

    The quantile function of a normal, then the logistic (Esser et al., "Scaling Rectified Flow
    Transformers" (2024), section 3.1).
    """
    normal = torch.special.ndtri(stratified_times(n, generator).clamp(1e-4, 1 - 1e-4))
    return torch.sigmoid(mean + std * normal).clamp(max=1 - 2**-24)


@torch.no_grad()
def integrate(
    model: VelocityModel,
    x: Tensor,
    c: Tensor,
    *,
    t_from: float,
    t_to: float,
    n_steps: int,
    method: Method = "euler",
) -> Tensor:
    """Carry ``x`` (B, C, H, W) along the flow from time ``t_from`` to ``t_to``.

    ``euler`` calls the network once a step, ``heun`` (the explicit trapezoidal rule,
    second order) twice.  Forward and backward in time are the same call.

    Raises:
        ValueError: fewer than one step, or an unknown method.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}; write 1 or more")
    if method not in ("euler", "heun"):
        raise ValueError(f"method is {method!r}; write 'euler' or 'heun'")
    times = torch.linspace(t_from, t_to, n_steps + 1, dtype=torch.float64).tolist()

    def slope(x: Tensor, t: float) -> Tensor:
        return model(x, torch.full((len(x), 1, 1, 1), t, dtype=x.dtype, device=x.device), c)

    for t, t_next in pairwise(times):
        dt = t_next - t
        v = slope(x, t)
        if method == "heun":
            v = (v + slope(x + dt * v, t_next)) / 2
        x = x + dt * v
    return x


def sample(
    model: VelocityModel, e: Tensor, c: Tensor, *, n_steps: int = 50, method: Method = "euler"
) -> Tensor:
    """Draw images: noise ``e`` (B, C, H, W) at t=1, carried to t=0."""
    return integrate(model, e, c, t_from=1.0, t_to=0.0, n_steps=n_steps, method=method)
