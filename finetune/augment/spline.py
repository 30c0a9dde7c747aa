"""Smooth fields and pictures along one axis, as matrices: cubic B-splines and a Gaussian blur."""

from __future__ import annotations

import torch
from torch import Tensor

GRID = 8  # control points along each axis


def spline_matrix(positions: Tensor) -> Tensor:
    """Weights (k, GRID) of the control points at ``positions`` (k,) in [-1, 1]; rows sum to 1."""
    step = 2 / (GRID - 3)  # the grid has one more point on either side of the canvas
    knots = torch.linspace(-1 - step, 1 + step, GRID, device=positions.device)
    u = (positions[:, None] - knots).abs() / step
    near = 2 / 3 - u**2 + u**3 / 2
    far = (2 - u).clamp(min=0) ** 3 / 6
    return torch.where(u < 1, near, far)


def gaussian_matrix(n: int, sigma: float) -> Tensor:
    """Convolution with a Gaussian as a matrix (n, n); rows sum to one, also at the borders."""
    i = torch.arange(n, dtype=torch.float32)
    offsets = (i[:, None] - i) / sigma
    # Cut off, because weights further out are subnormal numbers, which are slow to multiply.
    weights = torch.exp(-0.5 * offsets**2) * (offsets.abs() <= 4)
    return weights / weights.sum(1, keepdim=True)
