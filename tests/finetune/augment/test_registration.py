"""Maps between drawings: known motions are found, and blending follows them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.augment.mix import Augmenter
from finetune.augment.registration import correspondences
from finetune.augment.spline import GRID, spline_matrix
from finetune.data.runes import resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.recipe import Recipe
from tests.settings import STILL


def moved(bitmaps: Tensor, maps: Tensor) -> Tensor:
    """``bitmaps`` (n, 105, 105) looked up through ``maps`` (n, 2, GRID, GRID)."""
    p = (torch.arange(105) + 0.5) * (2 / 105) - 1
    spread = spline_matrix(p)
    field = (spread @ maps @ spread.T).movedim(1, -1)
    places = torch.stack(torch.meshgrid(p, p, indexing="xy"), -1)
    return F.grid_sample(bitmaps[:, None], places + field, align_corners=False)[:, 0]


def overlap(a: Tensor, b: Tensor) -> float:
    """Shared ink over all ink."""
    a, b = a > 0.5, b > 0.5
    return ((a & b).sum() / (a | b).sum()).item()


def test_spline_weights_sum_to_one_and_carry_straight_lines() -> None:
    p = torch.linspace(-1, 1, 41)
    spread = spline_matrix(p)
    torch.testing.assert_close(spread.sum(1), torch.ones(41))
    step = 2 / (GRID - 3)
    knots = torch.linspace(-1 - step, 1 + step, GRID)
    torch.testing.assert_close(spread @ knots, p, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [(0, 8), (10, -5)])
def test_a_shift_is_found(shift: tuple[int, int]) -> None:
    first = draw_rune("ing", 1, seed=0)[0].float()
    pair = torch.stack([first, first.roll(shift, (0, 1))])
    maps = correspondences(pair)
    assert overlap(moved(pair[:1], maps[0, 1][None])[0], pair[1]) > 0.9
    assert overlap(moved(pair[1:], maps[1, 0][None])[0], pair[0]) > 0.9
    assert overlap(pair[0], pair[1]) < 0.5, "which they did not do before"


def test_different_drawings_of_a_rune_are_brought_together() -> None:
    bitmaps = draw_rune("thorn", 4, seed=1).float()
    maps = correspondences(bitmaps)
    assert maps.shape == (4, 4, 2, GRID, GRID)
    before, after = [], []
    for i in range(4):
        assert (maps[i, i] == 0).all()
        for j in range(4):
            if i != j:
                before.append(overlap(bitmaps[i], bitmaps[j]))
                after.append(overlap(moved(bitmaps[i][None], maps[i, j][None])[0], bitmaps[j]))
    assert sum(after) / len(after) > 1.5 * sum(before) / len(before)


@pytest.mark.parametrize("n", [1, 2])
def test_few_or_blank_drawings_have_maps_too(n: int) -> None:
    assert correspondences(draw_rune("ing", n, seed=0).float()).isfinite().all()
    assert correspondences(torch.zeros(n, 105, 105)).isfinite().all()


def test_blending_lies_nearer_to_other_drawings() -> None:
    """Without any jitter, blended drawings cover those that were left out better."""
    drawings = resize_bitmaps(draw_rune("thorn", 20, seed=2), "bilinear")
    seen, unseen = drawings[:10], drawings[10:].flatten(1)

    def distance(blend: float) -> float:
        recipe = Recipe(**{**STILL, "blend": blend})
        images = Augmenter(seen, recipe, torch.Generator().manual_seed(0))(400).flatten(1)
        assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
        return torch.cdist(unseen, images).amin(1).mean().item()

    assert distance(1.0) < 0.9 * distance(0.0)
