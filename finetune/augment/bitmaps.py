"""From 28x28 grey drawings back to the 105x105 one-bit bitmaps they were resized from.

The resize is taken to be the one under which smooth strokes of the pen's width fit best.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..canvas import BITMAP_SIZE, PEN_RADIUS
from .descent import descend
from .resizing import KERNELS, TWO_VALUED, Resizing, listed_levels
from .spline import gaussian_matrix

_GREY = 0.02  # values further than this from 0 and 1 are grey
_BORDERS = (0, 2, 4)  # pixels; MNIST has four
_EXACT = 0.6 / 255  # values this near to those that a resize can give count as equal
_SCREEN_STEPS, _FIT_STEPS = 15, 80
_SCREENED = 4  # drawings for a first, short fit of each resize
_SMOOTH_PX = 1.5  # strokes have no detail finer than this
_BINARY_WEIGHT = 2e-3  # pull of unseen pixels to ink or paper
# Among fits as good as this the pen's width decides, and then the plainer case.
_ERROR_FLOOR = 1e-4
_WIDTH_WEIGHT = 4.0
_BORDER_FACTOR = 1.5


def rebuild(images: Tensor) -> tuple[Tensor, Resizing, float]:
    """Bitmaps (n, 105, 105) behind ``images`` (n, 28, 28), how they were resized, and the error."""
    resizing = find_resizing(images)
    bitmaps, error = _fit(images, resizing, _FIT_STEPS)
    return bitmaps, resizing, error


def find_resizing(images: Tensor) -> Resizing:
    """Find how ``images`` (n, 28, 28) were resized: by exact tests if possible, else by fits."""
    two_valued = bool(((images < _GREY) | (images > 1 - _GREY)).all())
    steps = images * 255
    in_8_bits = not two_valued and bool(((steps - steps.round()).abs() < 1e-3).all())
    clips = bool(((images >= 0) & (images <= 1)).all())
    inside = {b: F.pad(F.pad(images, (-b,) * 4), (b,) * 4) for b in _BORDERS}
    borders = [b for b in _BORDERS if (images - inside[b]).abs().max() <= _GREY]
    kernels = [kernel for kernel in KERNELS if (kernel in TWO_VALUED) == two_valued]
    candidates = [Resizing(k, b, in_8_bits, clips) for b in borders for k in kernels]
    if not two_valued:
        exact = [candidate for candidate in candidates if _lists(candidate, images)]
        candidates = exact or candidates
    if len(candidates) == 1:
        return candidates[0]
    return min(candidates, key=lambda candidate: _badness(images[:_SCREENED], candidate))


def stroke_radius(bitmaps: Tensor) -> float:
    """Half the width of the strokes of ``bitmaps`` (n, H, W), in pixels, as area over edge.

    A strip of half-width r and length l has the area 2 r l and an edge of length 2 l, which
    Crofton's formula counts along four directions.
    """
    ink, edge = F.pad(bitmaps, (1, 1, 1, 1)), 1e-6
    for step in ((0, 1), (1, 0), (1, 1), (1, -1)):
        changes = (ink - ink.roll(step, (1, 2))).abs().sum().item()
        edge += math.pi / 8 * changes / math.hypot(*step)
    return bitmaps.sum().item() / edge


def _lists(candidate: Resizing, images: Tensor) -> bool:
    """Whether all grey values are among those that the candidate can give."""
    if (levels := listed_levels(candidate.operator())) is None:
        return False
    return bool(((images[:, None] - levels.to(images)).abs().amin(1) < _EXACT).all())


def _badness(images: Tensor, candidate: Resizing) -> float:
    """Error of a short fit, and how far its strokes are from the pen's width."""
    bitmaps, error = _fit(images, candidate, _SCREEN_STEPS)
    off = abs(math.log(max(stroke_radius(bitmaps), 0.1) / PEN_RADIUS))
    factor = 1.0 if candidate.border == 0 else _BORDER_FACTOR
    return factor * (error + _ERROR_FLOOR) * math.exp(_WIDTH_WEIGHT * off)


def _fit(images: Tensor, resizing: Resizing, n_steps: int) -> tuple[Tensor, float]:
    """Fit bitmaps of smooth strokes whose resized images are ``images``; returns the error, too."""
    operator = resizing.operator()
    operator = None if operator is None else operator.to(images)
    smooth = gaussian_matrix(BITMAP_SIZE, _SMOOTH_PX).to(images)
    inner = F.pad(images[:, None], (-resizing.border,) * 4)
    start = F.interpolate(inner, size=(BITMAP_SIZE, BITMAP_SIZE), mode="bicubic")[:, 0]

    def loss(logits: Tensor, share: float) -> Tensor:
        ink = torch.sigmoid(2 * (smooth @ logits @ smooth.T))
        error = (resizing.apply(ink, operator) - images).square().sum()
        return error + _BINARY_WEIGHT * (ink * (1 - ink)).sum()

    logits = descend(loss, 8 * start - 4, n_steps, (0.5, 0.5))
    bitmaps = (smooth @ logits @ smooth.T > 0).to(images.dtype)
    error = (resizing.apply(bitmaps, operator) - images).square().mean().item()
    return bitmaps, error
