"""From grey drawings back to one-bit strokes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.augment import bitmaps as rebuild_module
from finetune.augment.bitmaps import rebuild, stroke_radius
from finetune.augment.resizing import Resizing
from finetune.canvas import RESIZES, Resize
from finetune.data.runes import resize_bitmaps
from finetune.data.synthetic import draw_rune

# Nearest reads single pixels: of "feoh" and "rad" it keeps some that are hard to explain.
RUNES = ("feoh", "rad", "ing")
N = 2  # drawings of each: rebuilding costs a second


@dataclass(frozen=True)
class Case:
    """Drawings, what they were made from, and what they were taken for."""

    resize: Resize
    bitmaps: Tensor  # (N, 105, 105), 1 is ink
    images: Tensor  # (N, 28, 28)
    rebuilt: Tensor  # as `bitmaps`
    found: Resizing
    error: float


@pytest.fixture(
    scope="session",
    params=[(rune, resize) for rune in RUNES for resize in RESIZES],
    ids=lambda p: "-".join(p),
)
def case(request: pytest.FixtureRequest) -> Case:
    rune, resize = request.param
    bitmaps = draw_rune(rune, N, seed=0)
    images = resize_bitmaps(bitmaps, resize)[:, 0]
    return Case(resize, bitmaps.float(), images, *rebuild(images))


def test_finds_how_the_drawings_were_resized(case: Case) -> None:
    assert case.found == Resizing(case.resize)


def test_bitmaps_are_binary_and_explain_the_drawings(case: Case) -> None:
    bitmaps = case.rebuilt
    assert bitmaps.shape == case.bitmaps.shape
    assert ((bitmaps == 0) | (bitmaps == 1)).all()
    again = resize_bitmaps(bitmaps, case.resize)[:, 0]
    error = (again - case.images).square().mean().item()
    assert error < 1e-3
    assert case.error == pytest.approx(error, abs=1e-6)


def test_bitmaps_are_the_strokes_that_were_drawn(case: Case) -> None:
    """As far as the drawings can tell: nearest and bilinear never saw most of the pixels."""
    lowest = {"antialiased": 0.9, "bilinear": 0.7, "nearest": 0.6}[case.resize]
    ink, true = case.rebuilt > 0.5, case.bitmaps > 0.5
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
    assert torch.equal(first[0], second[0]) and first[1:] == second[1:]
    assert torch.equal(images, given_images)
    torch.set_rng_state(state)
    rebuild(images)
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=30)
@given(width=st.integers(1, 12), length=st.integers(60, 90), upright=st.booleans())
def test_radius_of_a_strip_is_half_its_width(width: int, length: int, upright: bool) -> None:
    bitmap = torch.zeros(1, 105, 105)
    bitmap[0, 8 : 8 + length, 40 : 40 + width] = 1
    bitmap = bitmap if upright else bitmap.mT
    # Its ends are edge as well.
    expected = width * length / (2 * (width + length))
    assert stroke_radius(bitmap) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("rune", RUNES)
def test_radius_of_drawn_runes_is_the_pens(rune: str) -> None:
    assert stroke_radius(draw_rune(rune, 4, seed=0).float()) == pytest.approx(2.5, rel=0.1)


def test_blank_and_full_bitmaps_have_a_radius() -> None:
    assert stroke_radius(torch.zeros(1, 9, 9)) == 0
    assert stroke_radius(torch.ones(1, 9, 9)) > 1
