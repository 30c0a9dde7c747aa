"""Where the strokes of one drawing lie in another: smooth maps between all pairs of drawings.

Ten people drew one rune, and the maps between their drawings say how runes of a kind differ:
more than any jitter does.  Each map is a field of displacements on a coarse grid, spread by
cubic B-splines (Rueckert et al. 1999, "Nonrigid registration using free-form deformations"),
and found by gradient descent on blurred drawings, from coarse to fine.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .spline import spline_weights

GRID = 8  # control points along each axis
_REACH = 1 + 2 / (GRID - 3)  # one step beyond the canvas on either side
_SIZE = 48  # of the images that are compared, pixels along each axis
_BLURS_PX = (4.0, 2.0, 1.2)
_STEPS = 40  # for each blur
_LR = 0.02  # of displacements; the canvas spans 2
_BENDING_WEIGHT = 0.02


def correspondences(bitmaps: Tensor) -> Tensor:
    """Maps between all pairs of ``bitmaps`` (n, 105, 105), 1 is ink: (n, n, 2, GRID, GRID).

    Entry (i, j) holds control displacements, x then y, on a canvas that spans [-1, 1]: what
    lies at p in drawing j lies at p plus the displacement there in drawing i.  Draws no random
    numbers.  About a second and a half for ten drawings on one core.
    """
    n = len(bitmaps)
    images = F.interpolate(bitmaps[:, None], size=(_SIZE, _SIZE), mode="area")
    i, j = (~torch.eye(n, dtype=torch.bool, device=bitmaps.device)).nonzero().T
    p = (torch.arange(_SIZE, dtype=torch.float32, device=bitmaps.device) + 0.5) * (2 / _SIZE) - 1
    spread = spline_matrix(p)  # (_SIZE, GRID)
    places = torch.stack(torch.meshgrid(p, p, indexing="xy"), -1)  # (_SIZE, _SIZE, 2)
    with torch.enable_grad():
        maps = _boxes_onto_boxes(images, p, i, j).requires_grad_()  # (n (n - 1), 2, GRID, GRID)
        optimizer = torch.optim.Adam([maps], lr=_LR)
        for blur_px in _BLURS_PX if len(i) else ():
            # The blur lowers the contrast; this gives all scales about the same say.
            blurred = blur_px * blur(images, blur_px)
            for step in range(_STEPS):
                optimizer.param_groups[0]["lr"] = _LR * (1 - 0.7 * step / _STEPS)
                field = (spread @ maps @ spread.T).movedim(1, -1)
                moved = F.grid_sample(blurred[i], places + field, align_corners=False)
                error = (moved - blurred[j]).square().mean((1, 2, 3))
                loss = (error + _BENDING_WEIGHT * blur_px**2 * _bending(maps)).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    found = bitmaps.new_zeros(n, n, 2, GRID, GRID)
    found[i, j] = maps.detach()
    return found


def spline_matrix(positions: Tensor) -> Tensor:
    """Weights (k, GRID) of the maps' control points at ``positions`` (k,) in [-1, 1]."""
    return spline_weights(positions, GRID, _REACH)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (n, 1, H, W), borders repeated."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1))


def _boxes_onto_boxes(images: Tensor, p: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Maps that bring means and deviations of the ink together, along each axis."""
    knots = torch.linspace(-_REACH, _REACH, GRID, device=images.device)
    maps = []
    for axis in (3, 2):  # x, y
        ink = images.sum((1, 5 - axis))  # (n, _SIZE)
        ink = ink / ink.sum(1, keepdim=True).clamp(min=1e-6)
        mean = (ink * p).sum(1, keepdim=True)
        deviation = (ink * (p - mean).square()).sum(1, keepdim=True).sqrt().clamp(min=0.05)
        line = mean[i] + deviation[i] / deviation[j] * (knots - mean[j]) - knots  # (pairs, GRID)
        maps.append((line[:, None, :] if axis == 3 else line[:, :, None]).expand(-1, GRID, GRID))
    return torch.stack(maps, 1).contiguous()


def _bending(maps: Tensor) -> Tensor:
    """Mean squared second differences of each map, (pairs,)."""
    along_x = maps[..., 2:] - 2 * maps[..., 1:-1] + maps[..., :-2]
    along_y = maps[..., 2:, :] - 2 * maps[..., 1:-1, :] + maps[..., :-2, :]
    across = maps[..., 1:, 1:] - maps[..., 1:, :-1] - maps[..., :-1, 1:] + maps[..., :-1, :-1]
    parts = (along_x, along_y, across, across)
    return torch.stack([part.square().flatten(1).mean(1) for part in parts]).sum(0)
