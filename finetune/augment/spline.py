"""Smooth fields and pictures along one axis, as matrices: cubic B-splines and a Gaussian blur."""

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


def gaussian_matrix(n: int, sigma: float) -> Tensor:
    """Convolution with a Gaussian as a matrix (n, n); rows sum to one at the borders too."""
    i = torch.arange(n, dtype=torch.float32)
    offsets = (i[:, None] - i) / sigma
    # Cut off: further out the weights are subnormal numbers, which processors multiply slowly.
    weights = torch.exp(-0.5 * offsets**2) * (offsets.abs() <= 4)
    return weights / weights.sum(1, keepdim=True)
