"""The grey levels of a pixel: every value that a resize can give, and how often."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.augment.resizing import Resizing
from finetune.data.runes import RESIZES, Resize, resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.predict.levels import GreyLevels, grey_levels

BITMAPS = draw_rune("ing", 20, seed=0)


def levels(resize: Resize, bitmaps: Tensor = BITMAPS) -> tuple[GreyLevels, Tensor]:
    images = resize_bitmaps(bitmaps, resize)
    return grey_levels(images[:10], images, Resizing(resize).operator()), images


def level_values(found: GreyLevels, images: Tensor) -> Tensor:
    """The mean of each pixel's nearest level."""
    means = found.means.expand(-1, 28, 28)[None].expand(len(images), -1, -1, -1)
    return means.gather(1, found.nearest(images)[:, None])


@pytest.mark.parametrize(("resize", "n_levels"), [("bilinear", 16), ("nearest", 2)])
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), ink=st.floats(0.05, 0.95))
def test_any_bitmap_that_is_plainly_resized_has_listed_levels_only(
    resize: Resize, n_levels: int, seed: int, ink: float
) -> None:
    found, _ = levels(resize)
    assert len(found.means) == n_levels
    g = torch.Generator().manual_seed(seed)
    bitmaps = (torch.rand(2, 105, 105, generator=g) < ink).to(torch.uint8)
    images = resize_bitmaps(bitmaps, resize)
    torch.testing.assert_close(level_values(found, images), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("corner", [0, 1])
def test_a_level_is_the_same_bits_of_every_pixel(corner: int) -> None:
    """So it is one level where of each pixel's 2x2 bits the upper left (lower right) one is ink."""
    operator = Resizing("bilinear").operator()
    assert operator is not None
    seen = operator != 0
    assert (seen.sum(1) == 2).all()
    rows = torch.arange(105).expand_as(seen)[seen].view(28, 2)[:, corner]
    bitmap = torch.zeros(105, 105)
    bitmap[rows[:, None], rows] = 1
    image = operator @ bitmap @ operator.T
    (same,) = [mean for mean in levels("bilinear")[0].means if torch.allclose(mean, image)]
    assert len(same.unique()) > 3  # though it is not one grey


def test_other_resizes_have_paper_ink_and_steps_between() -> None:
    found, images = levels("antialiased")
    assert found.means.shape == (16, 1, 1)
    assert found.means[0] == pytest.approx(0, abs=1e-4)
    assert found.means[-1] == pytest.approx(1, abs=1e-4)
    assert torch.equal(found.means.flatten().sort().values, found.means.flatten())
    exact = (images == 0) | (images == 1)
    errors = (level_values(found, images) - images).abs()
    assert errors[exact].max() < 1e-3 < errors[~exact].mean() < errors.max() < 1 / 14


@pytest.mark.parametrize("resize", RESIZES)
def test_priors_are_shares_of_pixels(resize: Resize) -> None:
    found, images = levels(resize)
    shares = found.log_prior.exp()
    torch.testing.assert_close(shares.sum(0), torch.ones_like(shares[0]), rtol=0, atol=1e-3)
    # Paper is the commonest, and at the share that it has in the images.
    assert (found.log_prior.argmax(0) == 0).all()
    assert shares[0].mean().item() == pytest.approx((images < 1e-3).float().mean().item(), abs=0.01)


def test_rounding_widens_levels_but_mixes_up_none() -> None:
    images = resize_bitmaps(BITMAPS, "bilinear")
    rounded = (images * 255).round() / 255
    exact = grey_levels(images, images, Resizing("bilinear").operator())
    found = grey_levels(rounded, images, Resizing("bilinear").operator())
    assert found.variances.sqrt().max() == pytest.approx(0, abs=1 / 255)
    assert found.variances.min() > 2 * exact.variances.max()
    torch.testing.assert_close(level_values(found, rounded), images, rtol=0, atol=1e-5)


def test_drawings_of_no_known_resize_get_levels_too() -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.rand(10, 1, 28, 28, generator=g)
    found = grey_levels(images, images, None)
    assert found.means.shape == (16, 1, 1)
    assert (level_values(found, images) - images).abs().max() < 1 / 14


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_drawings_of_one_colour_have_finite_levels(grey: float) -> None:
    images = torch.full((2, 1, 28, 28), grey)
    for operator in (None, Resizing("bilinear").operator()):
        found = grey_levels(images, images, operator)
        for part in (found.means, found.variances, found.log_prior):
            assert part.isfinite().all()
        assert (found.variances > 0).all()
