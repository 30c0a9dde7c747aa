"""How drawings differ: the parts of maps whose parts are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks.variation import PARTS, deviations, main, of_recipe, split_maps
from finetune.augment.spline import GRID
from finetune.data.synthetic import draw_rune
from finetune.recipe import Recipe


def affine_maps(linear: Tensor, shift_px: Tensor, n: int) -> Tensor:
    """The same map for all pairs of ``n`` drawings, (n, n, 2, GRID, GRID)."""
    step = 2 / (GRID - 3)
    knots = torch.linspace(-1 - step, 1 + step, GRID)
    places = torch.stack(torch.meshgrid(knots, knots, indexing="xy"), -1)
    field = places @ (linear - torch.eye(2)).T + shift_px / 14  # splines keep what is linear
    return field.movedim(-1, 0).expand(n, n, 2, GRID, GRID)


def test_parts_of_a_linear_map_are_found() -> None:
    bitmaps = draw_rune("rad", 3, seed=0).float()
    scale, aspect, shear, slope = 0.1, -0.2, 0.15, -0.3
    size = torch.tensor([scale + aspect / 2, scale - aspect / 2]).exp()
    linear = (
        torch.tensor([[1.0, 0.0], [slope, 1.0]]) @ torch.tensor([[1.0, shear], [0.0, 1.0]]) * size
    )
    found = split_maps(affine_maps(linear, torch.zeros(2), 3), bitmaps)
    assert found.shape == (6, len(PARTS))
    expected = torch.tensor([scale, aspect, shear, slope, 0.0, 0.0]).expand(6, 6)
    torch.testing.assert_close(found[:, 2:], expected, atol=1e-4, rtol=0)


def test_a_shift_is_one_and_what_no_linear_map_does_is_left() -> None:
    bitmaps = draw_rune("rad", 3, seed=0).float()
    shift = torch.tensor([1.5, -0.5])
    maps = affine_maps(torch.eye(2), shift, 3)
    found = split_maps(maps, bitmaps)
    expected = torch.tensor([1.5, -0.5, 0, 0, 0, 0, 0, 0]).expand(6, 8)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    bent = maps.clone()
    bent[:, :, 1] += 0.5 * torch.linspace(-1, 1, GRID).square()
    rest = split_maps(bent, bitmaps)[:, 6:]
    assert rest[:, 0].abs().max() < 1e-4 < 0.1 < rest[:, 1].min()


def test_deviations_are_those_of_one_of_two() -> None:
    g = torch.Generator().manual_seed(0)
    values = 3.0 * torch.randn(400, 1, generator=g)
    pairs = (values[:, None] - values[None]).view(-1, 1)
    assert deviations(pairs).item() == pytest.approx(3.0, rel=0.1)


def test_a_recipe_has_those_of_its_ranges() -> None:
    recipe = Recipe(
        shift_px=3.0,
        scale=0.3,
        aspect=0.2,
        shear=0.0,
        slope=0.4,
        rotation_deg=0.0,
        elastic_px=0.7,
        vertical=4.0,
    )
    n = math.sqrt(3)
    expected = [1.5 / n, 6 / n, 0.3 / n, 0.2 / n, 0.0, 0.4 / n, 0.35, 1.4]
    assert of_recipe(recipe) == pytest.approx(expected)


@pytest.mark.usefixtures("drawn_once")
def test_a_run_prints_every_rune(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--source", "drawn", "--runes", "thorn"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row[:16].strip() for row in rows[1:]] == ["thorn", "all", "default recipe"]
    assert rows[1].split()[1:] == rows[2].split()[1:]
    assert all(float(value) > 0 for value in rows[1].split()[1:])
