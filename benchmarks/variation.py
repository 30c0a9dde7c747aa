"""``python -m benchmarks.variation``: how people's drawings of one rune differ.

Smooth maps between all pairs of a rune's drawings (`finetune.augment.registration`) are split, by
least squares over the ink, into a shift, a linear map and the rest.  The linear map is a product of
what the augmentation mix has: slope . shear . scaling.  Printed are standard deviations of one
drawing, which are those of a pair's difference over the square root of two; beside them stand those
of the default recipe.
"""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from finetune.augment.bitmaps import rebuild
from finetune.augment.registration import correspondences
from finetune.augment.spline import spline_matrix
from finetune.challenge import add_data_options
from finetune.data.options import open_asked
from finetune.data.runes import choose_runes
from finetune.errors import run_command
from finetune.recipe import Recipe

# What one drawing has more of than another: pixels of the 28x28 image, or relative changes.
PARTS = ("shift x", "shift y", "scale", "aspect", "shear", "slope", "rest x", "rest y")
_HALF_CANVAS_PX = 14.0
_SIZE = 48  # of the images whose ink weighs places, pixels along each axis


def split_maps(maps: Tensor, bitmaps: Tensor) -> Tensor:
    """Parts of maps from each drawing to the others, (pairs, len(PARTS)).

    Args:
        maps: (n, n, 2, G, G), as `finetune.augment.registration.correspondences` gives them.
        bitmaps: (n, 105, 105), 1 is ink.

    Returns:
        For each pair the shift (px), the logarithm of the scale and of width over height, the two
        shears, and the root mean square of what is left along each axis (px).
    """
    p = (torch.arange(_SIZE) + 0.5) * (2 / _SIZE) - 1
    spread = spline_matrix(p)
    places = torch.stack(torch.meshgrid(p, p, indexing="xy"), -1).view(-1, 2)
    ink = F.interpolate(bitmaps[:, None], size=(_SIZE, _SIZE), mode="area").flatten(1)
    i, j = (~torch.eye(len(bitmaps), dtype=torch.bool)).nonzero().T
    field = (spread @ maps[i, j] @ spread.T).flatten(2).mT  # (pairs, places, 2)
    weights = (ink / ink.sum(1, keepdim=True))[j][:, :, None]
    centred = places - (weights * places).sum(1, keepdim=True)
    design = torch.cat([torch.ones_like(weights), centred], -1)
    root = weights.sqrt()
    fit = torch.linalg.lstsq(root * design, root * field).solution  # (pairs, 3, 2)
    rest = (weights * (field - design @ fit).square()).sum(1).sqrt() * _HALF_CANVAS_PX
    linear = torch.eye(2) + fit[:, 1:].mT
    # slope . shear . scaling = [[w, h u], [w v, h (1 + u v)]] for slope v, shear u.
    width, slope = linear[:, 0, 0], linear[:, 1, 0] / linear[:, 0, 0]
    height = linear[:, 1, 1] - slope * linear[:, 0, 1]
    shear = linear[:, 0, 1] / height
    log_width, log_height = width.clamp(min=0.1).log(), height.clamp(min=0.1).log()
    parts = [(log_width + log_height) / 2, log_width - log_height, shear, slope]
    return torch.cat([fit[:, 0] * _HALF_CANVAS_PX, torch.stack(parts, 1), rest], 1)


def deviations(parts: Tensor) -> Tensor:
    """Standard deviations of one drawing, (len(PARTS),), from `split_maps` of all pairs."""
    # A pair and its reverse differ by a sign, so the mean is none; what is left has no sign.
    return parts.square().mean(0).sqrt() / math.sqrt(2)


def of_recipe(recipe: Recipe) -> list[float]:
    """The same of the recipe's uniform ranges; what is left is the elastic field."""
    root, rotation = math.sqrt(recipe.vertical), math.radians(recipe.rotation_deg)
    # A small rotation is a slope, and a shear the other way.
    shear, slope = math.hypot(recipe.shear, rotation), math.hypot(recipe.slope, rotation)
    shifts = [recipe.shift_px / root, recipe.shift_px * root]
    ranges = [*shifts, recipe.scale, recipe.aspect, shear, slope]
    return [r / math.sqrt(3) for r in ranges] + [recipe.elastic_px / root, recipe.elastic_px * root]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_data_options(parser)
    parser.add_argument("--runes", nargs="+", metavar="RUNE", help="default: all")
    arguments = parser.parse_args(argv)
    source = open_asked(arguments)
    runes = choose_runes(source, arguments.runes, len(source.runes))
    print(f"{'':<16}" + "".join(f"{part:>9}" for part in PARTS))
    squares = []
    for rune in tqdm(runes, unit="rune"):
        bitmaps, *_ = rebuild(source.drawings(rune, arguments.resize)[:, 0])
        found = deviations(split_maps(correspondences(bitmaps), bitmaps))
        squares.append(found.square())
        tqdm.write(_row(rune, found.tolist()))
    mean = torch.stack(squares).mean(0).sqrt()
    print(_row("all", mean.tolist()))
    print(_row("default recipe", of_recipe(Recipe())))
    return 0


def _row(name: str, values: list[float]) -> str:
    return f"{name:<16}" + "".join(f"{value:>9.3f}" for value in values)


if __name__ == "__main__":
    run_command(main)
