"""The family of resizes: what its members do, and that drawings made elsewhere are recognised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.resizes import WAYS
from finetune.augment.bitmaps import find_resizing, rebuild
from finetune.augment.mix import Augmenter
from finetune.augment.resizing import (
    KERNELS,
    TWO_VALUED,
    Resizing,
    listed_levels,
    resized,
)
from finetune.canvas import RESIZES, Resize
from finetune.data.runes import open_omniglot, resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.predict.levels import grey_levels
from finetune.recipe import Recipe

BORDERS = (0, 2, 4)
# What each way is; the second is hard to tell from the first, and as good.
EXPECTED = {
    "bilinear": ("bilinear", 0),
    "antialiased": ("antialiased", 0),
    "nearest": ("nearest", 0),
    "max-of-cell": ("max", 0),
    "pil-bilinear": ("antialiased", 0),
    "aligned-corners": ("bilinear-corners", 0),
    "20-in-28": ("antialiased", 4),
    "20-in-28-plain": ("bilinear", 4),
    "pil-lanczos": ("bicubic", 0),  # the nearest one
}
GREYS = torch.tensor([-0.01, 0.02, 0.2, 0.4, 0.6, 0.8, 0.98, 1.01])


def members() -> st.SearchStrategy[Resizing]:
    return st.builds(
        Resizing, st.sampled_from(KERNELS), st.sampled_from(BORDERS), st.booleans(), st.booleans()
    )


def bitmaps_of(seed: int, ink: float, n: int = 2) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 105, 105, generator=g) < ink).float()


def histogram(images: Tensor) -> Tensor:
    return torch.histogram(images.flatten().contiguous(), GREYS).hist / images.numel()


@settings(max_examples=80)
@given(member=members(), seed=st.integers(0, 10_000), ink=st.floats(0, 1))
def test_images_stay_in_their_range_size_and_steps(member: Resizing, seed: int, ink: float) -> None:
    images = resized(bitmaps_of(seed, ink), member)
    assert images.shape == (2, 28, 28)
    low, high = (0, 1) if member.clips else (-0.6, 1.6)
    assert images.min() >= low - 1e-5 and images.max() <= high + 1e-5
    b = member.border
    outside = torch.ones(28, 28, dtype=torch.bool)
    outside[b : 28 - b, b : 28 - b] = False
    assert (images[:, outside] == 0).all()
    if member.in_8_bits:
        assert (images * 255 - (images * 255).round()).abs().max() < 1e-3
    if member.kernel in TWO_VALUED:
        assert ((images == 0) | (images == 1)).all()


@settings(max_examples=60)
@given(member=members(), seed=st.integers(0, 10_000))
def test_only_what_is_seen_matters(member: Resizing, seed: int) -> None:
    bitmaps, seen = bitmaps_of(seed, 0.3), member.seen()
    changed = bitmaps.clone()
    changed[:, ~seen] = 1 - changed[:, ~seen]
    changed[:, :, ~seen] = 1 - changed[:, :, ~seen]
    torch.testing.assert_close(
        resized(changed, member), resized(bitmaps, member), rtol=0, atol=1e-5
    )
    operator = member.operator()
    if operator is not None:  # the columns seen alone give the same
        apart = member.apply(bitmaps[:, seen][:, :, seen], operator[:, seen])
        torch.testing.assert_close(apart, resized(bitmaps, member), rtol=0, atol=0.51 / 255)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "max"])
@pytest.mark.parametrize("border", BORDERS)
def test_ink_everywhere_is_ink_inside_of_the_border(kernel: str, border: int) -> None:
    member = Resizing(kernel, border)
    b = member.border
    inside = resized(torch.ones(1, 105, 105), member)[0, b : 28 - b, b : 28 - b]
    torch.testing.assert_close(inside, torch.ones(28 - 2 * b, 28 - 2 * b), rtol=0, atol=1e-5)


@pytest.mark.parametrize("resize", RESIZES)
def test_members_resize_as_the_data_is_resized(resize: Resize) -> None:
    bitmaps = draw_rune("os", 3, seed=1)
    images = resized(bitmaps.float(), Resizing(resize))
    torch.testing.assert_close(images, resize_bitmaps(bitmaps, resize)[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "pil-lanczos"])
def test_members_resize_as_others_libraries_do(way: str) -> None:
    bitmaps = draw_rune("os", 3, seed=1)
    kernel, border = EXPECTED[way]
    images = resized(bitmaps.float(), Resizing(kernel, border, in_8_bits=way.startswith("pil")))
    torch.testing.assert_close(images, WAYS[way](bitmaps)[:, 0], rtol=0, atol=2 / 255)


@settings(max_examples=30)
@given(
    kernel=st.sampled_from(["bilinear", "bilinear-corners", "nearest"]),
    border=st.sampled_from(BORDERS),
    seed=st.integers(0, 10_000),
    ink=st.floats(0.05, 0.95),
)
def test_any_value_of_few_bits_is_listed(kernel: str, border: int, seed: int, ink: float) -> None:
    member = Resizing(kernel, border)
    operator = member.operator()
    assert operator is not None
    images = resized(bitmaps_of(seed, ink), member)
    assert (images[:, None] - listed_levels(operator)).abs().amin(1).max() < 1e-5


@pytest.mark.parametrize("rune", ["rad", "ing"])
@pytest.mark.parametrize("way", WAYS)
def test_the_way_of_ten_drawings_is_found(way: str, rune: str) -> None:
    check_found(WAYS[way](draw_rune(rune, 10, seed=0)), way)


@pytest.mark.parametrize("way", WAYS)
def test_the_way_of_ten_real_drawings_is_found(way: str, real_data: Path) -> None:
    source = open_omniglot(real_data)
    check_found(WAYS[way](source.bitmaps[source.runes[0]][:10]), way)


def check_found(drawings: Tensor, way: str) -> None:
    """The member is the right one, and explains the drawings."""
    _, found, error = rebuild(drawings[:, 0])
    assert (found.kernel, found.border) == EXPECTED[way]
    assert found.in_8_bits == way.startswith("pil")
    assert error < 5e-4


@pytest.mark.parametrize("way", WAYS)
def test_drawings_of_each_way_are_drawn_anew(way: str) -> None:
    """With the same greys; real ones, too, by ``tests/finetune/test_real.py``."""
    # Five, as it takes a part of a second to follow a pen's path through one.
    drawings = WAYS[way](draw_rune("rad", 5, seed=0))
    augment = Augmenter(drawings, Recipe(), torch.Generator().manual_seed(0))
    assert augment.by_pen
    drawn = augment(400)
    assert drawn.mean().item() == pytest.approx(drawings.mean().item(), rel=0.12)
    assert (histogram(drawn) - histogram(drawings)).abs().sum() / 2 < 0.02
    levels = grey_levels(drawings, drawn, augment.operator)
    values = levels.means.expand(-1, 28, 28)[None].expand(len(drawings), -1, -1, -1)
    nearest = values.gather(1, levels.nearest(drawings)[:, None])
    assert (nearest - drawings).abs().max() < 1 / 14
    assert levels.log_prior.isfinite().all()


@pytest.mark.parametrize("kernel", ["bicubic", "bicubic-plain", "bicubic-corners"])
def test_overshoot_is_left_where_drawings_have_it(kernel: str) -> None:
    bitmaps = draw_rune("rad", 4, seed=0).float()
    loose, cut = (resized(bitmaps, Resizing(kernel, clips=clips)) for clips in (False, True))
    assert -0.25 < loose.min() < -0.01 and loose.max() < 1.25 and cut.min() == 0
    assert not find_resizing(loose).clips and find_resizing(cut).clips


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_drawings_of_one_colour_have_some_resize(grey: float) -> None:
    assert rebuild(torch.full((2, 28, 28), grey))[0].isfinite().all()


def test_the_largest_value_of_each_cell_has_gradients() -> None:
    ink = F.interpolate(torch.rand(1, 1, 30, 30), 105)[0].requires_grad_()
    Resizing("max").apply(ink, None).sum().backward()
    assert ink.grad is not None and ink.grad.sum() >= 28**2 - 1e-3
