"""From 28x28 grey drawings back to the 105x105 one-bit bitmaps they were resized from.

A drawing was made by a linear map of a bitmap, ``image = D bitmap D^T``, with D the
(28, 105) matrix of some resize.  Which resize is not known: each candidate is tried, and
the one under which a bitmap of smooth strokes explains the drawings best is kept.  Warps
can then be drawn at full resolution and resized as the drawings were, so that grey values
keep their statistics; warping the 28x28 image itself would blur them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BITMAP_SIZE = 105  # Omniglot's canvas
RESIZES: dict[str, dict[str, object]] = {
    "nearest": {"mode": "nearest"},
    "bilinear": {"mode": "bilinear"},
    "antialiased": {"mode": "bilinear", "antialias": True},
    "area": {"mode": "area"},
    "bicubic": {"mode": "bicubic", "antialias": True},
}
_GREY = 0.02  # values further than this from 0 and 1 are grey
_SCREEN_STEPS, _FIT_STEPS = 15, 80
_SMOOTH_PX = 1.5  # strokes have no detail finer than this
_BINARY_WEIGHT = 2e-3  # pull of unseen pixels to ink or paper


@dataclass(frozen=True)
class Rebuilt:
    """Bitmaps (n, 105, 105), 1 is ink; the operator D (28, 105); and how well it all fits."""

    bitmaps: Tensor
    operator: Tensor
    resize: str
    error: float  # mean squared error of the resized bitmaps, per pixel


def resize_operator(resize: str, n_in: int = BITMAP_SIZE, n_out: int = 28) -> Tensor:
    """The matrix (n_out, n_in) that `F.interpolate` applies along each axis."""
    basis = torch.eye(n_in)[:, None, None, :]  # one unit vector per batch entry, 1 x n_in
    rows = F.interpolate(basis, size=(1, n_out), **RESIZES[resize])  # type: ignore[arg-type]
    return rows[:, 0, 0, :].T.contiguous()


def resize_with(bitmaps: Tensor, operator: Tensor) -> Tensor:
    """``D bitmap D^T``: (n, 105, 105) to (n, 28, 28)."""
    return operator @ bitmaps @ operator.T


def rebuild(images: Tensor) -> Rebuilt:
    """Bitmaps that, resized by the best-fitting operator, give ``images`` (n, 28, 28) in [0, 1].

    Draws no random numbers.  About a second for ten drawings on one core.
    """
    resize = _likeliest_resize(images)
    operator = resize_operator(resize).to(images)
    bitmaps, error = _fit(images, operator, _FIT_STEPS)
    return Rebuilt(bitmaps=bitmaps, operator=operator, resize=resize, error=error)


def _likeliest_resize(images: Tensor) -> str:
    """The candidate under which short fits leave the least error."""
    if ((images < _GREY) | (images > 1 - _GREY)).all():
        return "nearest"  # others can also be two-valued by chance, but only this one always is
    errors = {}
    for resize in RESIZES:
        operator = resize_operator(resize).to(images)
        errors[resize] = _fit(images, operator, _SCREEN_STEPS)[1]
    return min(errors, key=lambda resize: errors[resize])


def _fit(images: Tensor, operator: Tensor, n_steps: int) -> tuple[Tensor, float]:
    """Binary bitmaps of smooth strokes with ``D bitmap D^T`` near ``images``, and the error.

    Adam on the logits of every pixel, seen through a Gaussian: an analysis by synthesis.
    """
    n_in = operator.shape[1]
    smooth = _gaussian_matrix(n_in, _SMOOTH_PX).to(images)
    start = F.interpolate(images[:, None], size=(n_in, n_in), mode="bicubic")[:, 0]
    with torch.enable_grad():
        logits = (8 * start - 4).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.5)
        for _ in range(n_steps):
            ink = torch.sigmoid(2 * (smooth @ logits @ smooth.T))
            loss = (resize_with(ink, operator) - images).square().sum()
            loss = loss + _BINARY_WEIGHT * (ink * (1 - ink)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    bitmaps = (smooth @ logits.detach() @ smooth.T > 0).to(images.dtype)
    return bitmaps, (resize_with(bitmaps, operator) - images).square().mean().item()


def _gaussian_matrix(n: int, sigma: float) -> Tensor:
    """Convolution with a Gaussian as a matrix (n, n); rows sum to one at the borders too."""
    i = torch.arange(n, dtype=torch.float32)
    offsets = (i[:, None] - i[None, :]) / sigma
    # Cut off: further out the weights are subnormal numbers, which processors multiply slowly.
    weights = torch.exp(-0.5 * offsets**2) * (offsets.abs() <= 4)
    return weights / weights.sum(1, keepdim=True)


def signed_distance(bitmaps: Tensor, limit: int = 5) -> Tensor:
    """Distance to the stroke's edge in pixels, negative inside, cut off at ±``limit``.

    Shapes (n, H, W) to (n, H, W).  The edge lies halfway between ink and paper pixels.
    """
    ink = bitmaps > 0.5
    return _distance_to(ink, limit) - _distance_to(~ink, limit)


def _distance_to(mask: Tensor, limit: int) -> Tensor:
    """Distance from each pixel's centre to the edge of ``mask``, 0 inside it, at most ``limit``."""
    h, w = mask.shape[-2:]
    padded = F.pad(mask.float(), (limit,) * 4) > 0.5
    distance = torch.full(mask.shape, float(limit), device=mask.device)
    distance[mask] = 0.0
    for dy in range(-limit, limit + 1):
        for dx in range(-limit, limit + 1):
            length = (dy * dy + dx * dx) ** 0.5
            if 0 < length <= limit:
                there = padded[:, limit + dy : limit + dy + h, limit + dx : limit + dx + w]
                candidate = torch.where(there, length - 0.5, float(limit))
                distance = torch.minimum(distance, candidate)
    return distance.masked_fill(mask, 0.0)
