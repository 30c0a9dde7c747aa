"""From grey drawings back to one-bit strokes, and how far each pixel is from their edge."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.augment import bitmaps as rebuild_module
from finetune.augment.bitmaps import (
    RESIZES,
    Rebuilt,
    rebuild,
    resize_operator,
    resize_with,
    signed_distance,
)
from finetune.canvas import RESIZES as DATA_RESIZES
from finetune.canvas import Resize
from finetune.data.runes import resize_bitmaps
from finetune.data.synthetic import draw_rune

# Nearest reads single pixels: of "feoh" and "rad" it keeps some that are hard to explain.
RUNES = ("feoh", "rad", "ing")
N = 2  # drawings of each: rebuilding costs a second
LIMIT = 5


@dataclass(frozen=True)
class Case:
    """Drawings, what they were made from, and what they were taken for."""

    resize: Resize
    bitmaps: Tensor  # (N, 105, 105), 1 is ink
    images: Tensor  # (N, 28, 28)
    rebuilt: Rebuilt


@pytest.fixture(
    scope="session",
    params=[(rune, resize) for rune in RUNES for resize in DATA_RESIZES],
    ids=lambda p: "-".join(p),
)
def case(request: pytest.FixtureRequest) -> Case:
    rune, resize = request.param
    bitmaps = draw_rune(rune, N, seed=0)
    images = resize_bitmaps(bitmaps, resize)[:, 0]
    return Case(resize, bitmaps.float(), images, rebuild(images))


def test_finds_how_the_drawings_were_resized(case: Case) -> None:
    assert case.rebuilt.resize == case.resize
    assert torch.equal(case.rebuilt.operator, resize_operator(case.resize))


def test_bitmaps_are_binary_and_explain_the_drawings(case: Case) -> None:
    bitmaps = case.rebuilt.bitmaps
    assert bitmaps.shape == case.bitmaps.shape
    assert ((bitmaps == 0) | (bitmaps == 1)).all()
    again = resize_bitmaps(bitmaps, case.resize)[:, 0]
    error = (again - case.images).square().mean().item()
    assert error < 1e-3
    assert case.rebuilt.error == pytest.approx(error, abs=1e-6)


def test_bitmaps_are_the_strokes_that_were_drawn(case: Case) -> None:
    """As far as the drawings can tell: nearest and bilinear never saw most of the pixels."""
    lowest = {"antialiased": 0.9, "bilinear": 0.7, "nearest": 0.6}[case.resize]
    ink, true = case.rebuilt.bitmaps > 0.5, case.bitmaps > 0.5
    assert (ink & true).sum() / (ink | true).sum() > lowest


def test_rebuilding_is_exact_again_and_leaves_random_numbers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rebuild_module, "_SCREEN_STEPS", 1)
    monkeypatch.setattr(rebuild_module, "_FIT_STEPS", 2)
    images = resize_bitmaps(draw_rune("ur", 1, seed=0), "bilinear")[:, 0]
    given_images, state = images.clone(), torch.get_rng_state()
    with torch.no_grad():
        first = rebuild(images)
    torch.rand(3)
    second = rebuild(images)
    assert torch.equal(first.bitmaps, second.bitmaps) and first.error == second.error
    assert torch.equal(images, given_images)
    torch.set_rng_state(state)
    rebuild(images)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("resize", RESIZES)
@settings(max_examples=30, deadline=None)
@given(
    in_hw=st.tuples(st.integers(20, 60), st.integers(20, 60)),
    out_hw=st.tuples(st.integers(2, 20), st.integers(2, 20)),
)
def test_operator_is_the_resize_along_each_axis(
    resize: str, in_hw: tuple[int, int], out_hw: tuple[int, int]
) -> None:
    image = torch.rand(in_hw, generator=torch.Generator().manual_seed(0))
    rows = resize_operator(resize, in_hw[0], out_hw[0])
    columns = resize_operator(resize, in_hw[1], out_hw[1])
    expected = F.interpolate(image[None, None], size=out_hw, **RESIZES[resize])  # type: ignore[arg-type]
    assert torch.allclose(rows @ image @ columns.T, expected[0, 0], atol=1e-5)


@pytest.mark.parametrize("resize", DATA_RESIZES)
def test_operator_resizes_as_the_data_is_resized(resize: Resize) -> None:
    bitmaps = draw_rune("os", 3, seed=1)
    images = resize_with(bitmaps.float(), resize_operator(resize))
    assert torch.allclose(images, resize_bitmaps(bitmaps, resize)[:, 0], atol=1e-6)


def pixels(n: int = 41) -> tuple[Tensor, Tensor]:
    i = torch.arange(n, dtype=torch.float32)
    y, x = torch.meshgrid(i, i, indexing="ij")
    return x, y


def assert_is_distance(ink: Tensor, exact: Tensor, atol: float, border: int = 0) -> None:
    """``exact`` (H, W), negative inside, is what ``ink`` gives but for ``border`` pixels."""
    distance = signed_distance(ink.float()[None], LIMIT)[0]
    assert distance.shape == ink.shape
    assert (distance.abs() <= LIMIT).all()
    assert torch.equal(distance < 0, ink) and torch.equal(distance > 0, ~ink)
    error = (distance - exact.clamp(-LIMIT, LIMIT)).abs()
    inner = slice(border, -border or None)
    assert error[inner, inner].max() <= atol
    assert (distance == LIMIT).any() and (distance == -LIMIT).any(), "cut off on both sides"


@settings(max_examples=30, deadline=None)
@given(
    radius=st.floats(6.5, 12), centre=st.tuples(st.floats(18, 22), st.floats(18, 22))
)  # so that the disc holds pixels beyond the limit and stays away from the border
def test_distance_to_a_disc(radius: float, centre: tuple[float, float]) -> None:
    x, y = pixels()
    exact = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2).sqrt() - radius
    assert_is_distance(exact <= 0, exact, atol=0.8)


@settings(max_examples=30, deadline=None)
@given(angle=st.floats(0, 2 * math.pi), offset=st.floats(-5, 5))
def test_distance_to_a_half_plane(angle: float, offset: float) -> None:
    x, y = pixels()
    exact = (x - 20) * math.cos(angle) + (y - 20) * math.sin(angle) - offset
    assert_is_distance(exact <= 0, exact, atol=0.8, border=LIMIT + 1)


@pytest.mark.parametrize("column", [10, 20])
def test_distance_to_an_upright_edge_is_exact_up_to_the_border(column: int) -> None:
    x, _ = pixels()
    exact = x - (column - 0.5)  # halfway between the last ink and the first paper
    assert_is_distance(x < column, exact, atol=0.0)


def test_distance_where_there_is_no_edge() -> None:
    blank = torch.zeros(1, 12, 9)
    assert (signed_distance(blank, 3) == 3).all()
    assert (signed_distance(blank + 1, 3) == -3).all()
