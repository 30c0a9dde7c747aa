"""Uniform cubic B-splines: smooth fields from few control points."""

from __future__ import annotations

import torch
from torch import Tensor


def spline_weights(positions: Tensor, n_points: int, reach: float = 1.0) -> Tensor:
    """Weights (k, n_points) at ``positions`` (k,) of control points evenly over ±``reach``.

    They sum to one wherever two control points lie on either side.
    """
    knots = torch.linspace(-reach, reach, n_points, device=positions.device)
    u = (positions[:, None] - knots).abs() / (2 * reach / (n_points - 1))
    near = 2 / 3 - u**2 + u**3 / 2
    far = (2 - u).clamp(min=0) ** 3 / 6
    return torch.where(u < 1, near, far)
