"""The augmentation mix: endless drawings from ten, batched on the device.

The affine and the elastic part are one map of coordinates and cost one resampling.  There
are no flips: runes are chiral.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .correspond import blur, correspondences, spline_matrix
from .rebuild import BITMAP_SIZE, Rebuilt, rebuild, resize_with, signed_distance
from .recipe import Recipe

# Above this the drawings are no resized strokes (they may be photographs or already
# grey); they are then warped as they are.  Real drawings rebuild to 1e-4 or better.
_MAX_REBUILD_ERROR = 5e-3
_EDGE_SMOOTH_PX = 0.7  # takes the staircase off a one-bit edge
_CALIBRATION_BATCH, _CALIBRATION_ROUNDS = 128, 7


@dataclass(frozen=True)
class Warp:
    """Coordinates to look up, for each pixel drawn: output to source, in units of the canvas.

    ``grid`` (b, H, W, 2) in [-1, 1] as `F.grid_sample` takes it; ``scale`` (b,) is how much
    larger the output is than the source.
    """

    grid: Tensor
    scale: Tensor


class Augmenter:
    """Draws batches of warped drawings.

    Args:
        drawings: (n, 1, 28, 28) in [0, 1], on the device to draw on.
        recipe: its augmentation fields are used.
        generator: the source of every random number, on the same device.
    """

    def __init__(self, drawings: Tensor, recipe: Recipe, generator: torch.Generator) -> None:
        self.drawings = drawings
        self.recipe = recipe
        self.generator = generator
        if recipe.render == "rebuilt":
            rebuilt = rebuild(drawings[:, 0])
            self.rebuilt = rebuilt if rebuilt.error <= _MAX_REBUILD_ERROR else None
        self.operator: Tensor | None = None  # (28, m), that made the drawings, if it is known
        if recipe.render == "direct" or self.rebuilt is None:
            self._positions = _pixel_centres(drawings.shape[-1]).to(drawings)
        else:
            self._prepare_strokes(self.rebuilt)

    def __call__(self, n: int) -> Tensor:
        """``n`` augmented drawings, (n, 1, 28, 28) in [0, 1]."""
        device = self.drawings.device
        index = torch.randint(len(self.drawings), (n,), generator=self.generator, device=device)
        plain = self._uniform(n) < self.recipe.plain_share
        warp = self.draw_warp(index)
        if self.recipe.render == "direct" or self.rebuilt is None:
            warped = F.grid_sample(
                self.drawings[index], warp.grid, mode="bilinear", align_corners=False
            )
        else:
            width = self._symmetric(n) * self.recipe.stroke_px / 2  # each edge moves by half
            warped = self._render(index, warp, width * BITMAP_SIZE / self.drawings.shape[-1])
        return torch.where(plain[:, None, None, None], self.drawings[index], warped)

    def draw_warp(self, index: Tensor) -> Warp:
        """Random maps for the drawings ``index`` (n,), as looked up at the positions drawn."""
        r, n = self.recipe, len(index)
        half_canvas_px = self.drawings.shape[-1] / 2
        angle = self._symmetric(n) * math.radians(r.rotation_deg)
        scale = 1 + self._symmetric(n) * r.scale
        stretch = torch.sqrt(1 + self._symmetric(n) * r.aspect)
        shear = self._symmetric(n) * r.shear
        shift = self._symmetric(n, 2) * r.shift_px / half_canvas_px
        # Source = A (output - shift), A the inverse of rotation . shear . scaling.
        cos, sin = torch.cos(angle), torch.sin(angle)
        inverse_rotation = torch.stack([cos, sin, -sin, cos], -1).view(n, 2, 2)
        zero, one = torch.zeros_like(shear), torch.ones_like(shear)
        inverse_shear = torch.stack([one, -shear, zero, one], -1).view(n, 2, 2)
        inverse_scale = torch.stack([1 / (scale * stretch), stretch / scale], -1)  # (n, 2)
        inverse = inverse_scale[:, :, None] * (inverse_shear @ inverse_rotation)

        p = self._positions  # (k,)
        k = len(p)
        xy = torch.stack(torch.meshgrid(p, p, indexing="xy"), -1)  # (k, k, 2) as (x, y)
        grid = (xy[None] - shift[:, None, None, :]) @ inverse[:, None].transpose(-1, -2)
        if r.elastic_px:
            offsets = self._normal(n, 2, r.elastic_grid, r.elastic_grid)
            spread = _cubic_matrix(r.elastic_grid, p)  # (k, g)
            field = spread @ (offsets * (r.elastic_px / half_canvas_px)) @ spread.T
            grid = grid + field.movedim(1, -1)
        if r.blend and self.rebuilt is not None:
            grid = grid + self._blended(index)
        return Warp(grid=grid.view(n, k, k, 2), scale=scale)

    def _blended(self, index: Tensor) -> Tensor:
        """Displacements (n, k, k, 2) that turn drawings toward new ones of their kind.

        Toward a draw from the normal distribution that has the mean and the covariance of all
        the drawings' maps, by a random part of the way.
        """
        r, n, kinds = self.recipe, len(index), len(self.drawings)
        variety = self._normal(n, kinds) * (r.blend_spread / math.sqrt(max(kinds - 1, 1)))
        way = self._uniform(n, 1) * r.blend
        weights = way * (1 / kinds + variety - variety.mean(1, keepdim=True))
        maps = (weights[:, None] @ self._maps[index].flatten(2)).view(n, *self._maps.shape[2:])
        return (self._map_spread @ maps @ self._map_spread.T).movedim(1, -1)

    def _prepare_strokes(self, rebuilt: Rebuilt) -> None:
        # Only the bitmap's rows and columns that the resize looks at are ever drawn: for
        # plain bilinear and nearest that is a quarter of the pixels or less.
        used = rebuilt.operator.abs().sum(0) > 0
        self.operator = self._operator = rebuilt.operator[:, used].contiguous()
        self._positions = _pixel_centres(BITMAP_SIZE).to(self.drawings)[used]
        self._distance = blur(signed_distance(rebuilt.bitmaps)[:, None], _EDGE_SMOOTH_PX)
        if self.recipe.blend:
            self._maps = correspondences(rebuilt.bitmaps)
            self._map_spread = spline_matrix(self._positions)  # (k, GRID)
        # A strip of half-width r and length l has area 2 r l and an edge of length 2 l.
        edge = (self._distance.abs() < 0.5).sum().clamp(min=1)
        self._half_width = (rebuilt.bitmaps.sum() / edge).item()
        self._offset = 0.0
        self._offset = self._calibrated_offset()

    def _render(
        self, index: Tensor, warp: Warp, width: Tensor, offset: float | None = None
    ) -> Tensor:
        """One-bit strokes at full resolution, resized as the drawings were, (b, 1, 28, 28).

        The pen keeps its width whatever the size of the drawing: with s the scale, d the
        distance to the edge and r the half-width, the edge lies where s (d + r) - r = 0.
        ``width`` (b,) moves the edge outward, in pixels of the bitmap.
        """
        distance = F.grid_sample(
            self._distance[index],
            warp.grid,
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )[:, 0]
        r = self._half_width
        outward = width + (self._offset if offset is None else offset)
        edge = (outward + r) / warp.scale - r
        strokes = (distance < edge[:, None, None]).to(self.drawings.dtype)
        return resize_with(strokes, self._operator)[:, None]

    def _calibrated_offset(self) -> float:
        """How far to move every edge so that the mean grey value is that of the drawings."""
        state = self.generator.get_state()
        n = _CALIBRATION_BATCH
        index = torch.arange(n, device=self.drawings.device) % len(self.drawings)
        warp = self.draw_warp(index)
        self.generator.set_state(state)
        none = torch.zeros(n, device=self.drawings.device)
        target = self.drawings.mean()
        low, high = -1.5, 1.5
        for _ in range(_CALIBRATION_ROUNDS):
            middle = (low + high) / 2
            if self._render(index, warp, none, middle).mean() < target:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.drawings.device)

    def _symmetric(self, *shape: int) -> Tensor:
        return 2 * self._uniform(*shape) - 1

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.drawings.device)


def _pixel_centres(n: int) -> Tensor:
    """Centres of ``n`` pixels on a canvas that spans [-1, 1], (n,)."""
    return (torch.arange(n, dtype=torch.float32) + 0.5) * (2 / n) - 1


def _cubic_matrix(n_points: int, positions: Tensor) -> Tensor:
    """Uniform cubic B-spline weights of ``n_points`` control points over [-1, 1], (k, n_points).

    Scaled so that unit control deviations give about unit deviations of the field.
    """
    knots = torch.linspace(-1, 1, n_points, device=positions.device)
    u = (positions[:, None] - knots).abs() / (2 / (n_points - 1))
    near = 2 / 3 - u**2 + u**3 / 2
    far = (2 - u).clamp(min=0) ** 3 / 6
    weights = torch.where(u < 1, near, far)
    return weights / weights.square().sum(1, keepdim=True).sqrt()
