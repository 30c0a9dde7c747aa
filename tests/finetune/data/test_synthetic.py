"""Drawn runes: the promises of ``draw_rune``, and that its drawings pass for Omniglot's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d

from finetune.canvas import BITMAP_SIZE
from finetune.data.synthetic import draw_rune, drawn_rune_names
from finetune.errors import UserError

NAMES = drawn_rune_names()

# 400 real drawings of 20 Futhorc characters have 4.1 % to 18.4 % ink; "is", a single stem that is
# not among them, has less.  Medians over those characters: 8.7 % ink, 82 high, 49 wide.
INK_RANGE = (0.025, 0.19)
MEAN_INK_RANGE = (0.075, 0.095)
HEIGHT_RANGE_PX = (45, 105)
MEAN_HEIGHT_RANGE_PX = (78, 86)
WIDTH_RANGE_PX = (5, 90)
MEAN_WIDTH_RANGE_PX = (44, 56)
# Middles of the real drawings' bounding boxes: x 38 to 62.5, y 40 to 65.
MIDDLE_RANGE_PX = (35, 70)

names = st.sampled_from(NAMES)
seeds = st.integers(0, 2**64)


@pytest.fixture(scope="module")
def drawings() -> Tensor:
    """Ten drawings of each rune, (29, 10, 105, 105) uint8."""
    return torch.stack([draw_rune(name, 10, seed=0) for name in NAMES])


def extent(lines: Tensor) -> tuple[Tensor, Tensor]:
    """First and last line with ink, of flags (..., 105)."""
    size = lines.shape[-1]
    return lines.int().argmax(-1), size - 1 - lines.flip(-1).int().argmax(-1)


def test_names_are_the_futhorc() -> None:
    assert len(NAMES) == len(set(NAMES)) == 29
    assert NAMES[:6] == ("feoh", "ur", "thorn", "os", "rad", "cen")
    assert NAMES[-1] == "ear"


def test_drawings_are_one_bit(drawings: Tensor) -> None:
    assert drawings.shape == (29, 10, BITMAP_SIZE, BITMAP_SIZE)
    assert drawings.dtype == torch.uint8
    assert (int(drawings.min()), int(drawings.max())) == (0, 1)


def test_no_drawings() -> None:
    assert draw_rune("feoh", 0, seed=0).shape == (0, BITMAP_SIZE, BITMAP_SIZE)


@settings(max_examples=15)
@given(names, seeds, st.integers(0, 4))
def test_the_first_drawings_do_not_depend_on_how_many(name: str, seed: int, k: int) -> None:
    assert torch.equal(draw_rune(name, k, seed), draw_rune(name, 4, seed)[:k])


@settings(max_examples=15)
@given(names, seeds)
def test_every_seed_and_every_hand_draws_differently(name: str, seed: int) -> None:
    six = torch.cat((draw_rune(name, 3, seed), draw_rune(name, 3, seed + 1)))
    assert len({bitmap.numpy().tobytes() for bitmap in six}) == 6


def test_runes_of_one_seed_are_by_different_hands(drawings: Tensor) -> None:
    """A shared hand would give all runes one height, up to the error of their points."""
    top, bottom = extent(drawings.any(-1))
    heights = (bottom - top).double()
    between_hands = heights.std(1).mean()
    assert heights.std(0).mean() > 0.7 * between_hands


def test_global_random_state_is_untouched() -> None:
    numpy_state, torch_state = str(np.random.get_state()), torch.get_rng_state()
    draw_rune("os", 2, seed=1)
    assert str(np.random.get_state()) == numpy_state
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_runes_are_told_apart_by_their_means(drawings: Tensor) -> None:
    def features(bitmaps: Tensor) -> Tensor:
        """Centre each drawing by its ink, blur it: (..., 105, 105) to (N, 196)."""
        flat = bitmaps.flatten(0, -3).float()
        at = torch.arange(float(BITMAP_SIZE))
        ink = flat.sum((1, 2))
        dy = (52 - (flat.sum(2) @ at) / ink).round().int().tolist()
        dx = (52 - (flat.sum(1) @ at) / ink).round().int().tolist()
        shifted = [b.roll((y, x), (0, 1)) for b, y, x in zip(flat, dy, dx, strict=True)]
        return avg_pool2d(torch.stack(shifted)[:, None], 14, stride=7).flatten(1)

    means = features(drawings).reshape(len(NAMES), -1, 196).mean(1)
    fresh = torch.stack([draw_rune(name, 5, seed=1) for name in NAMES])
    nearest = torch.cdist(features(fresh), means).argmin(1).reshape(len(NAMES), 5)
    right = nearest == torch.arange(len(NAMES))[:, None]
    assert right.float().mean() > 0.8  # chance is 1/29
    assert right.sum(1).min() >= 1


def test_ink_is_as_much_as_in_omniglot(drawings: Tensor) -> None:
    ink = drawings.float().mean((2, 3))
    assert INK_RANGE[0] < ink.min()
    assert ink.max() < INK_RANGE[1]
    assert MEAN_INK_RANGE[0] < ink.mean() < MEAN_INK_RANGE[1]


def test_size_and_place_are_as_in_omniglot(drawings: Tensor) -> None:
    top, bottom = extent(drawings.any(-1))
    left, right = extent(drawings.any(-2))
    for low, high, sizes, means in (
        (top, bottom, HEIGHT_RANGE_PX, MEAN_HEIGHT_RANGE_PX),
        (left, right, WIDTH_RANGE_PX, MEAN_WIDTH_RANGE_PX),
    ):
        size, middle = (high - low + 1).float(), (high + low) / 2
        assert sizes[0] <= size.min()
        assert size.max() <= sizes[1]
        assert means[0] < size.mean() < means[1]
        assert MIDDLE_RANGE_PX[0] < middle.min()
        assert middle.max() < MIDDLE_RANGE_PX[1]


def test_the_pen_is_as_wide_as_in_omniglot() -> None:
    """Real upright strokes are 5 pixels wide."""
    rows = draw_rune("is", 20, seed=0).sum(-1)
    assert rows[rows > 0].median() == 5


@settings(max_examples=20)
@given(names, seeds)
def test_no_stroke_is_cut_at_the_border(name: str, seed: int) -> None:
    bitmap = draw_rune(name, 1, seed)[0]
    assert bitmap[1:-1, 1:-1].sum() == bitmap.sum()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        UserError, match="no rune is called 'fehu'; write one of feoh, ur,"
    ) as error:
        draw_rune("fehu", 1, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("n", "seed"), [(-1, 0), (1, -1)])
def test_negative_numbers_are_refused(n: int, seed: int) -> None:
    with pytest.raises(ValueError, match="write 0 or more"):
        draw_rune("feoh", n, seed)
