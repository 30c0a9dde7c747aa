"""The posterior mean by what is near each place, against its definition and in its limits."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.predict.bank import ImageBank, posterior_mean
from finetune.predict.windows import window_layouts, windowed_mean
from finetune.recipe import Recipe


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 784, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise(n: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 28, 28, generator=generator, dtype=torch.float64)


def at(*t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64).view(-1, 1, 1, 1)


def windowed(a: Tensor, x_t: Tensor, t: Tensor, width_px: float) -> tuple[Tensor, Tensor]:
    """Of images (n, 784)."""
    return windowed_mean(*window_layouts(a), x_t, t, width_px)


@given(t=st.floats(0.1, 0.9), place=st.tuples(st.integers(0, 27), st.integers(0, 27)))
@settings(max_examples=20)
def test_each_pixel_follows_the_definition(t: float, place: tuple[int, int]) -> None:
    a, x_t = images(300).view(-1, 28, 28) * 0.1, t * noise(1)
    mean, effective = windowed(a.flatten(1), x_t, at(t), 5.5)
    width = 5.5 * t / (1 - t)
    row, column = (p // 4 * 4 + 1.5 for p in place)  # the middle of the pixel's block
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    window = torch.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2))
    errors = (window * (x_t[0, 0] - (1 - t) * a).square()).sum((1, 2))
    weights = (-errors / (2 * t * t)).softmax(0)
    expected = (weights * a[:, place[0], place[1]]).sum()
    torch.testing.assert_close(mean[0, 0][place], expected)
    torch.testing.assert_close(effective[0, 0][place], 1 / weights.square().sum())


def test_wide_windows_see_the_whole_image() -> None:
    a, t = images(300) * 0.1, at(0.3, 0.6, 0.9)
    x_t = t * noise(3)
    mean, effective = windowed(a, x_t, t, 1e6)
    whole, count = posterior_mean(a, a.square().sum(1), x_t, t)
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(effective, count.expand_as(effective))


def test_what_is_far_has_no_say() -> None:
    a, x_t = images(50) * 0.1, 0.2 * noise(1)
    other = x_t.clone()
    other[..., 20:, :] += 1.0  # seven of its widths away and more
    before, after = (windowed(a, one, at(0.2), 5.5)[0][0, 0] for one in (x_t, other))
    torch.testing.assert_close(after[:10], before[:10])
    assert not torch.isclose(after[20:], before[20:]).all()


def test_a_drawing_of_two_images_halves_is_both() -> None:
    """No whole image is like it, and each place is."""
    left, right = torch.zeros(2, 28, 28, dtype=torch.float64)
    left[:, ::4], right[::4] = 1, 1
    x = torch.cat([left[:, :14], right[:, 14:]], 1)
    x_t = ((1 - 0.25) * x + 0.25 * noise(1)[0, 0])[None, None]
    both = torch.stack([left, right]).flatten(1)
    near = windowed(both, x_t, at(0.25), 5.5)[0][0, 0]
    whole = posterior_mean(both, both.square().sum(1), x_t, at(0.25))[0][0, 0]
    far_from_the_seam = torch.cat([torch.arange(8), torch.arange(20, 28)])
    torch.testing.assert_close(
        near[:, far_from_the_seam], x[:, far_from_the_seam], rtol=0, atol=0.1
    )
    assert (near - x).square().mean() < 0.1 * (whole - x).square().mean()


def test_rows_are_each_as_if_alone() -> None:
    a, t = images(60) * 0.1, at(0.2, 0.4, 0.4, 0.6, 0.3, 0.5).repeat(4, 1, 1, 1)
    x_t = t * noise(24)  # more than are looked at together
    mean, effective = windowed(a, x_t, t, 5.5)
    for row in range(24):
        alone, count = windowed(a, x_t[row : row + 1], t[row : row + 1], 5.5)
        torch.testing.assert_close(mean[row : row + 1], alone)
        torch.testing.assert_close(effective[row : row + 1], count)


def test_a_bank_gives_them_their_share_where_there_is_some_noise() -> None:
    """n equal images are n with a say everywhere: the share of their mean is known."""
    one, mean, x_t = (images(*a).float().view(-1, 1, 28, 28) for a in ((1, 0), (4, 1), (4, 2)))
    t = torch.tensor([0.19, 0.29, 0.31, 0.61]).view(-1, 1, 1, 1)
    recipe = Recipe(bank_limit=0.5, window_limit=0.2)
    found = ImageBank(one.repeat(10, 1, 1, 1), recipe)(mean, x_t, t)
    share = 0.2 * (1 - 1 / 10)
    whole = 0.5 * (1 - 1 / 10) ** 10
    assert torch.equal(found[:2], mean[:2])
    near = mean[2] + whole * (one - mean[2])
    torch.testing.assert_close(found[2:3], near + share * (one - near))
    torch.testing.assert_close(found[3], mean[3] + whole * (one - mean[3])[0])
