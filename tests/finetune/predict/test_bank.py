"""The posterior mean over drawn images, in closed forms, and what it does beside a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from finetune.adapt import adapt
from finetune.data.runes import resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.predict.bank import ImageBank, posterior_mean
from finetune.predict.posterior import LevelPosterior
from finetune.recipe import Recipe
from finetune.scoring.estimators import NoiseTable, estimate
from tests.settings import STILL

NEW = 10
DRAWINGS = resize_bitmaps(draw_rune("ing", 12, seed=0), "bilinear")


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def at(t: float, n: int) -> Tensor:
    return torch.full((n, 1, 1, 1), t)


@given(t=st.floats(0.1, 0.99), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_two_images_follow_bayes_rule(t: float, seed: int) -> None:
    a = images(2, seed).double() * 0.1
    x_t = (1 - t) * a[:1] + t * torch.randn(
        (1, 1, 28, 28), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    errors = [(x_t - (1 - t) * one).square().sum().item() for one in a]
    share = 1 / (1 + math.exp((errors[0] - errors[1]) / (2 * t * t)))  # of the first
    mean, effective = posterior_mean(
        a.flatten(1), a.flatten(1).square().sum(1), x_t, at(t, 1).double()
    )
    torch.testing.assert_close(mean[0], share * a[0] + (1 - share) * a[1])
    assert effective.item() == pytest.approx(1 / (share**2 + (1 - share) ** 2))


def test_it_is_the_nearest_image_at_little_noise_and_the_average_at_much() -> None:
    a = images(5)
    for t, expected, effective in ((0.02, a, 1.0), (0.9999, a.mean(0).expand_as(a), 5.0)):
        x_t = (1 - t) * a
        mean, count = posterior_mean(a.flatten(1), a.flatten(1).square().sum(1), x_t, at(t, 5))
        torch.testing.assert_close(mean, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(count, torch.full_like(count, effective), rtol=1e-4, atol=0)


def test_equal_images_share_the_weight() -> None:
    """n equal images are n with a say: the share of their mean is known."""
    one, mean, x_t = images(1), images(1, 1), images(1, 2)
    for n, limit in ((1, 0.5), (2, 0.5), (10, 0.5), (10, 1.0)):
        bank = ImageBank(one.repeat(n, 1, 1, 1), Recipe(bank_limit=limit))
        share = limit * (1 - 1 / n) ** 10
        expected = mean + share * (one - mean)
        torch.testing.assert_close(bank(mean, x_t, at(0.8, 1)), expected)
        expected = mean + 0.3 * (1 - 1 / n) ** 10 * (one - mean)
        torch.testing.assert_close(bank.toward_posterior(mean, x_t, at(0.8, 1), 0.3), expected)


def test_it_has_no_say_at_little_noise_and_leaves_its_input_alone() -> None:
    bank = ImageBank(images(50), Recipe(bank_limit=0.5))
    mean, x_t = images(4, 1), images(4, 2)
    before = mean.clone()
    t = torch.tensor([0.0, 0.17, 0.6, 0.99]).view(-1, 1, 1, 1)
    found = bank(mean, x_t, t)
    assert torch.equal(mean, before)
    assert torch.equal(found[:2], mean[:2])
    assert not torch.isclose(found[3], mean[3]).all()
    assert torch.isfinite(found).all()


def test_many_rows_are_each_as_if_alone() -> None:
    bank = ImageBank(images(30), Recipe(bank_limit=0.5))
    mean, x_t, t = images(600, 1), images(600, 2), at(0.7, 600)
    together = bank(mean, x_t, t)
    for row in (0, 63, 64, 599):
        alone = bank(mean[row : row + 1], x_t[row : row + 1], t[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


def most_allocated(what: Callable[[], object]) -> int:
    """Bytes that torch has at most beyond those it had before, while it does ``what``."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        what()
    events = sorted(profiled.events(), key=lambda event: event.time_range.start)
    return max(accumulate(event.self_cpu_memory_usage for event in events))


def test_to_ask_it_takes_less_memory_than_its_images() -> None:
    bank = ImageBank(images(4000), Recipe(bank_limit=0.7))
    size = bank.images.nbytes
    assert most_allocated(lambda: bank.images.square().sum(1)) > size
    mean, x_t = images(200, 1), images(200, 2)
    assert most_allocated(lambda: bank(mean, x_t, at(0.7, 200))) < 0.5 * size


def test_whatever_changes_the_images_changes_what_windows_see() -> None:
    """Also a state that is loaded after the first answer, another type, and a copy."""
    mean, x_t, t = images(4, 1), images(4, 2), at(0.4, 4)
    one, other = (ImageBank(images(20, seed), Recipe()) for seed in (0, 9))
    expected = other(mean, x_t, t)
    assert not torch.allclose(one(mean, x_t, t), expected)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(mean, x_t, t), expected)
    found = one.double()(mean.double(), x_t.double(), t.double())
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-5)
    assert list(one.state_dict()) == ["images", "squares", "columns", "blocks"]


def test_windows_can_be_asked_first_where_no_gradients_are() -> None:
    bank = ImageBank(images(20), Recipe())
    mean, x_t = images(4, 1), images(4, 2)
    with torch.inference_mode():
        bank(mean, x_t, at(0.4, 4))
    (gradient,) = torch.autograd.grad(
        bank(mean, x_t.requires_grad_(), at(0.4, 4)).square().sum(), x_t
    )
    assert gradient.isfinite().all() and gradient.any()


@given(t=st.floats(0.35, 0.95), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_targets_have_the_drawings_mean_and_less_variance(t: float, seed: int) -> None:
    """Over drawings of the bank that are noisy at t: the posterior mean is exact for these."""
    bank = ImageBank(images(40) * 0.1, Recipe())
    g = torch.Generator().manual_seed(seed)
    x = bank.images[torch.randint(40, (4000,), generator=g)].view(-1, 1, 28, 28)
    x_t = (1 - t) * x + t * torch.randn(x.shape, generator=g)
    target = bank.toward_posterior(x, x_t, at(t, 4000), 1.0)
    error = (target - x).mean(0)
    spread = (target - x).std(0) / 4000**0.5
    assert (error.abs() <= 5 * spread + 1e-6).all()
    assert target.var(0).mean() < x.var(0).mean()


# As `adapt` makes it


def taught(**values: Any) -> LevelPosterior:
    torch.manual_seed(0)
    network = ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)
    fields = {"steps": 30, "batch_size": 8, "deadline_s": 1e4, "precision": "fp32"}
    model = adapt(network, DRAWINGS[:6], Recipe(**{**fields, **values})).model
    assert isinstance(model, LevelPosterior)
    return model


def test_it_has_as_many_images_as_the_recipe_says_and_training_draws() -> None:
    for steps, wanted, there in ((6, 4096, 48), (6, 20, 20)):
        still = {**STILL, "render": "direct"}
        bank = taught(steps=steps, bank_images=wanted, **still).bank
        assert bank is not None
        assert bank.images.shape == (there, 784)
        apart = torch.cdist(bank.images, DRAWINGS[:6].flatten(1)).amin(1)
        assert apart.max() < 0.1, "each is one of the drawings"


def test_a_recipe_can_do_without() -> None:
    assert taught(steps=2, bank_images=0).bank is None


def test_it_lowers_the_loss_at_noise() -> None:
    model = taught(target_limit=0.0)
    table = NoiseTable(6, 20, 4)
    helped = estimate(model, DRAWINGS[6:], NEW, table)
    model.bank = None
    alone = estimate(model, DRAWINGS[6:], NEW, table)
    pairs = list(zip(helped.per_t_bin, alone.per_t_bin, strict=True))
    assert pairs[0][0] == pairs[0][1]
    assert all(a < b for a, b in pairs[6:])


def test_a_target_that_it_has_a_share_in_changes_what_is_learnt() -> None:
    with_it, without = (taught(target_limit=limit).state_dict() for limit in (0.9, 0.0))
    assert not torch.equal(with_it["head.direct.weight"], without["head.direct.weight"])
