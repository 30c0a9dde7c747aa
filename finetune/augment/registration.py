"""Registration: smooth maps between all pairs of drawings, from coarse to fine.

Rueckert et al., "Nonrigid registration using free-form deformations" (1999).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .descent import descend
from .spline import GRID, gaussian_matrix, spline_matrix

_SIZE = 48  # size of the compared images, pixels along each axis
_BLURS_PX = (4.0, 2.0, 1.2)
_STEPS = 40  # steps for each blur
_LR = 0.02  # learning rate of displacements; the canvas spans 2
_BENDING_WEIGHT = 0.02


def correspondences(bitmaps: Tensor) -> Tensor:
    """Fit maps between all pairs of ``bitmaps`` (n, 105, 105), 1 is ink: (n, n, 2, GRID, GRID).

    Entry (i, j) has control displacements, x then y, on a canvas that spans [-1, 1]: place p of
    drawing j corresponds to p plus the displacement there in drawing i.
    """
    n = len(bitmaps)
    images = F.interpolate(bitmaps[:, None], size=(_SIZE, _SIZE), mode="area")
    i, j = (~torch.eye(n, dtype=torch.bool, device=bitmaps.device)).nonzero().T
    p = (torch.arange(_SIZE, dtype=torch.float32, device=bitmaps.device) + 0.5) * (2 / _SIZE) - 1
    spread = spline_matrix(p)  # (_SIZE, GRID)
    places = torch.stack(torch.meshgrid(p, p, indexing="xy"), -1)  # (_SIZE, _SIZE, 2)
    maps = images.new_zeros(len(i), 2, GRID, GRID)
    for blur_px in _BLURS_PX if len(i) else ():
        # The blur lowers the contrast; this weights all scales about equally.
        smooth = gaussian_matrix(_SIZE, blur_px).to(images)
        blurred = blur_px * smooth @ images @ smooth.T

        def loss(
            maps: Tensor, share: float, blurred: Tensor = blurred, px: float = blur_px
        ) -> Tensor:
            field = (spread @ maps @ spread.T).movedim(1, -1)
            moved = F.grid_sample(blurred[i], places + field, align_corners=False)
            error = (moved - blurred[j]).square().mean((1, 2, 3))
            return (error + _BENDING_WEIGHT * px**2 * _bending(maps)).sum()

        maps = descend(loss, maps, _STEPS, (_LR, 0.3 * _LR))
    found = bitmaps.new_zeros(n, n, 2, GRID, GRID)
    found[i, j] = maps
    return found


def _bending(maps: Tensor) -> Tensor:
    """Mean squared second differences of each map, (pairs,)."""
    across = maps.diff(dim=-1).diff(dim=-2)
    parts = (maps.diff(2, dim=-1), maps.diff(2, dim=-2), across, across)
    return torch.stack([part.square().flatten(1).mean(1) for part in parts]).sum(0)
