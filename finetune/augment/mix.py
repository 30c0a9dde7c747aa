"""The augmentation mix: endless new drawings from ten, batched on the device.

Affine and elastic maps move a pen's path, or a picture's pixels.  No flips: runes are chiral.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..canvas import BITMAP_SIZE, PEN_RADIUS
from ..recipe import Recipe
from .bitmaps import rebuild, stroke_radius
from .pen import stamp, trace
from .registration import correspondences
from .resizing import Resizing
from .spline import GRID, spline_matrix

# With a larger error drawings are not resized strokes, and are warped as pictures.  Real: 1e-4.
_MAX_REBUILD_ERROR = 5e-3
# Strokes of another width, relative to Omniglot's, are of another pen.  Real: 0.86 to 1.26.
_NARROWEST, _WIDEST = 0.8, 1.32
_RADIUS_BIAS = 1.04  # factor on area over edge, because strokes have ends
_THINNEST = 0.2  # thinnest pen relative to Omniglot's: a pixel wide
_MAX_PEN_ERROR = 0.2  # wrong bits over ink; real drawings: mostly under 0.05
_FIELD_DEVIATION = 0.48  # mean deviation of a field whose control points have deviation 1
_MOST_BLENDED, _MOST_TRACED = 20, 60  # drawings; six seconds on one core, each


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
        # The cost of maps between all pairs grows with the square of the number of drawings.
        self._blends = bool(recipe.blend) and len(drawings) <= _MOST_BLENDED
        self.operator: Tensor | None = None  # resize (28, m) of the drawings, if known
        self.by_pen = False  # whether drawings are drawn along paths, or warped as pictures
        self._radius = PEN_RADIUS
        # Size of a pixel along x and y, on a canvas that spans [-1, 1]; shifts are larger along y.
        root = math.sqrt(recipe.vertical)
        self._px = drawings.new_tensor([1 / root, root]) * (2 / drawings.shape[-1])
        if recipe.render == "pen" and len(drawings) <= _MOST_TRACED:
            self.by_pen = self._prepare(*rebuild(drawings[:, 0]))

    def __call__(self, n: int, times: Tensor | None = None) -> Tensor:
        """Draw ``n`` augmented drawings, (n, 1, 28, 28) in [0, 1].

        Args:
            times: t (n,) at which the network will see each drawing; default: 1.
        """
        device = self.drawings.device
        index = torch.randint(len(self.drawings), (n,), generator=self.generator, device=device)
        if self.recipe.render == "pen" and self.by_pen:
            points = self.draw_points(index, times)
            strokes = stamp(points, self._present[index], self._radius, self._seen)
            return self._resizing.apply(strokes, self.operator)[:, None]
        return F.grid_sample(self.drawings[index], self.draw_warp(index), align_corners=False)

    def draw_warp(self, index: Tensor) -> Tensor:
        """Random source places of the pixels of drawings ``index`` (n,), (n, H, W, 2)."""
        n, size = len(index), self.drawings.shape[-1]
        p = (torch.arange(size).to(self.drawings) + 0.5) * (2 / size) - 1  # of pixels' centres
        linear, shift = self._draw_affine(n)
        xy = torch.stack(torch.meshgrid(p, p, indexing="xy"), -1)  # (H, W, 2) as (x, y)
        # Source = inverse (output - shift).
        grid: Tensor = (xy[None] - shift[:, None, None, :]) @ torch.linalg.inv(linear)[:, None].mT
        spread = spline_matrix(p)  # (H, GRID)
        return grid + (spread @ self._draw_offsets(n) @ spread.T).movedim(1, -1)

    def draw_points(self, index: Tensor, times: Tensor | None = None) -> Tensor:
        """Randomly moved points of the paths of drawings ``index`` (n,), (n, P, 2)."""
        n, spread = len(index), self._spread[index]  # (n, P, 2, GRID)
        linear, shift = self._draw_affine(n)
        controls = self._draw_offsets(n)
        if self._blends:
            # The inverse maps: where each point of this drawing lies in the other drawings.
            controls = controls + self._mixed(self._maps[:, index].transpose(0, 1), times)
        # The fields' values at the points, along y first, then along x.
        rows = spread[:, :, 1] @ controls.transpose(1, 2).reshape(n, GRID, 2 * GRID)
        field = (rows.view(n, -1, 2, GRID) * spread[:, :, :1]).sum(-1)
        points = (self._paths[index] + field) @ linear.mT + shift[:, None]  # on the canvas
        return (points + 1) * (BITMAP_SIZE / 2) - 0.5

    def _draw_affine(self, n: int) -> tuple[Tensor, Tensor]:
        """Maps of the canvas, [-1, 1] along each axis, for n images: source to output.

        Returns:
            The linear part (n, 2, 2), which is rotation . slope . shear . scaling, and the shift
            (n, 2) after it.
        """
        r = self.recipe
        angle = self._symmetric(n) * math.radians(r.rotation_deg)
        scale = 1 + self._symmetric(n) * r.scale
        stretch = torch.sqrt(1 + self._symmetric(n) * r.aspect)
        shear = self._symmetric(n) * r.shear
        slope = self._symmetric(n) * r.slope
        shift = self._symmetric(n, 2) * self._px * r.shift_px
        cos, sin = torch.cos(angle), torch.sin(angle)
        rotation = torch.stack([cos, -sin, sin, cos], -1).view(n, 2, 2)
        one = torch.ones_like(shear)
        slanted = torch.stack([one, shear, slope, 1 + slope * shear], -1).view(n, 2, 2)
        size = torch.stack([scale * stretch, scale / stretch], -1)  # (n, 2)
        return rotation @ slanted * size[:, None, :], shift

    def _draw_offsets(self, n: int) -> Tensor:
        """Elastic displacements of the control points, (n, 2, GRID, GRID) on the canvas."""
        offsets = self._normal(n, 2, GRID, GRID) * self._px[:, None, None]
        return offsets * (self.recipe.elastic_px / _FIELD_DEVIATION)

    def _mixed(self, maps: Tensor, times: Tensor | None) -> Tensor:
        """Control displacements (n, 2, GRID, GRID) that blend drawings toward new ones.

        Each goes a random part of the way to a sample of the normal distribution with the mean and
        the covariance of ``maps`` (n, kinds, 2, GRID, GRID).  It goes further at more noise, where
        variety is visible and strokes spoilt by inexact maps are not.
        """
        r, (n, kinds) = self.recipe, maps.shape[:2]
        variety = self._normal(n, kinds) * (r.blend_spread / math.sqrt(max(kinds - 1, 1)))
        way = (1 + self._symmetric(n, 1)) / 2 * r.blend
        if times is not None:
            way = way * ((times - r.blend_from_t) / (1 - r.blend_from_t)).clamp(min=0)[:, None]
        weights = way * (1 / kinds + variety - variety.mean(1, keepdim=True))
        return (weights[:, None] @ maps.flatten(2)).view(n, *maps.shape[2:])

    def _prepare(self, bitmaps: Tensor, resizing: Resizing, error: float) -> bool:
        """Trace the pen's paths to draw along; false if no pen made the drawings."""
        if error > _MAX_REBUILD_ERROR:
            return False
        seen = resizing.seen().to(self.drawings.device)
        ratio = stroke_radius(bitmaps) / PEN_RADIUS
        # Rebuilt strokes tell the width only roughly, so Omniglot's pen is used if it fits.
        if not _NARROWEST <= ratio <= _WIDEST:
            self._radius = PEN_RADIUS * max(ratio / _RADIUS_BIAS, _THINNEST)
        points, self._present, wrong_share = trace(bitmaps, seen, self._radius)
        if wrong_share > _MAX_PEN_ERROR:
            return False
        self._seen, self._resizing = seen, resizing
        # Draw only rows and columns that the resize reads: a quarter of the bits, if plain.
        if (operator := resizing.operator()) is not None:
            self.operator = operator.to(self.drawings)[:, seen].contiguous()
        self._paths = (points + 0.5) * (2 / BITMAP_SIZE) - 1
        within = self._paths.clamp(-1, 1)  # padding points are far outside of the control grid
        self._spread = spline_matrix(within.flatten()).view(*within.shape, GRID)  # x, then y
        if self._blends:
            self._maps = correspondences(bitmaps)
        return True

    def _symmetric(self, *shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=self.generator, device=self.drawings.device) - 1

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.drawings.device)
