"""The posterior over grey levels: Bayes' rule in closed forms, and the network around it."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune.adapt import adapt
from finetune.augment.resizing import Resizing
from finetune.data.runes import resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.flow import image_losses, interpolate
from finetune.model.groups import with_mean_class
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.predict.levels import GreyLevels, grey_levels
from finetune.predict.posterior import LevelPosterior, last_features
from finetune.recipe import LORA_GROUPS, Recipe
from finetune.scoring.estimators import NoiseTable, author_estimate, estimate

NEW = 10
DRAWINGS = resize_bitmaps(draw_rune("ing", 6, seed=0), "bilinear")
LEVELS = grey_levels(DRAWINGS, DRAWINGS, Resizing("bilinear").operator())


def build(levels: GreyLevels = LEVELS, head: float = 0.0, n_hidden: int = 0) -> Any:
    """A tiny network with a head whose weights have the deviation ``head``."""
    torch.manual_seed(0)
    network = with_mean_class(ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1))
    recipe = Recipe(head_hidden=n_hidden, precision="fp32")
    model = LevelPosterior(network, levels, NEW, recipe, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.head.direct.weight.normal_(0, head) if head else None
    return model.eval()


def noisy(t: float, n: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, e, t, c and x_t."""
    g = torch.Generator().manual_seed(seed)
    x, times = DRAWINGS[:n], torch.full((n, 1, 1, 1), t)
    e = torch.randn(x.shape, generator=g)
    return x, e, times, torch.full((n,), NEW), interpolate(x, e, times)


def one_pixel(mean: list[float], variance: list[float], prior: list[float]) -> GreyLevels:
    def plane(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[:, None, None]

    return GreyLevels(plane(mean), plane(variance), plane(prior).log())


def mean_of(levels: GreyLevels, x_t: float, t: float) -> float:
    """What is expected of one pixel that nothing but itself tells of."""
    seen, time = torch.tensor([x_t, t]).double().view(2, 1, 1, 1, 1)
    log_probability, means = levels.posterior(seen, time)
    return (log_probability.softmax(1) * means).sum().item()


@given(
    t=st.floats(0.05, 0.95),
    x_t=st.floats(-2, 2),
    mean=st.floats(-1, 1),
    variance=st.floats(1e-3, 1.0),
)
def test_one_level_is_a_normal_with_its_textbook_posterior(
    t: float, x_t: float, mean: float, variance: float
) -> None:
    """Precisions add up: 1 / variance from the prior, ((1 - t) / t)^2 from x_t."""
    found = mean_of(one_pixel([mean], [variance], [1.0]), x_t, t)
    precision = ((1 - t) / t) ** 2
    expected = (mean / variance + precision * x_t / (1 - t)) / (1 / variance + precision)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(t=st.floats(0.05, 0.95), x_t=st.floats(-2, 3), prior=st.floats(0.01, 0.99))
def test_two_sharp_levels_follow_bayes_rule(t: float, x_t: float, prior: float) -> None:
    found = mean_of(one_pixel([0.0, 1.0], [1e-12, 1e-12], [1 - prior, prior]), x_t, t)
    log_odds = math.log(prior / (1 - prior)) + (x_t**2 - (x_t - 1 + t) ** 2) / (2 * t * t)
    expected = 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("t", [0.001, 0.005])
def test_at_hardly_any_noise_nothing_has_to_be_learnt(t: float) -> None:
    """An untrained head reads the levels off, and with them the noise itself."""
    x, e, times, c, _ = noisy(t)
    assert image_losses(build(), x, e, times, c).max() < 0.05
    assert image_losses(build().network, x, e, times, c).min() > 0.5


def test_at_no_noise_the_answer_is_finite_and_the_best_there_is() -> None:
    x, _, times, c, x_t = noisy(0.0)
    torch.testing.assert_close(build()(x_t, times, c), -x, rtol=0, atol=1e-5)


@given(t=st.floats(0.011, 0.99), seed=st.integers(0, 9))
@settings(max_examples=10)
def test_training_lowers_the_flow_loss_itself(t: float, seed: int) -> None:
    model = build(head=0.1)
    x, e, times, c, _ = noisy(t, seed=seed)

    labels = LEVELS.nearest(x)
    objective, loss = model.losses(x, times, labels, e, c)
    torch.testing.assert_close(
        loss, image_losses(model, x, e, times, c).mean(), rtol=1e-3, atol=1e-4
    )
    # Cross entropy, from the network's logits and what each pixel tells.
    x_t = interpolate(x, e, times)
    z = model.logits(x_t, times, c) + model.levels.posterior(x_t, times)[0]
    entropy = nn.functional.cross_entropy(z, labels)
    torch.testing.assert_close(objective, loss + model.recipe.level_weight * entropy)


def test_other_classes_keep_the_networks_own_velocity() -> None:
    model = build()
    *_, times, _, x_t = noisy(0.5)
    c = torch.tensor([0, 3, NEW, 9, NEW, 1])
    found, own = model(x_t, times, c), model.network(x_t, times, c)
    others = c != NEW
    torch.testing.assert_close(found[others], own[others])
    assert (found[~others] - own[~others]).abs().amax((1, 2, 3)).min() > 0.1
    digits = torch.zeros(6, dtype=torch.long)
    assert torch.equal(model(x_t, times, digits), model.network(x_t, times, digits))


def test_features_are_what_the_last_layer_gets() -> None:
    network = build().network
    *_, times, c, x_t = noisy(0.5)
    features = last_features(network, x_t, times, c)
    torch.testing.assert_close(network.conv_out(features), network(x_t, times, c))
    assert not network.conv_out._forward_pre_hooks


# As `adapt` returns it


@pytest.mark.parametrize(
    "values",
    [{}, {"lora_rank": 2, "lora_groups": LORA_GROUPS}, {"train_groups": ("norm_bias",)}],
    ids=["full", "lora", "norms"],
)
def test_a_few_steps_teach_it(values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)
    recipe = Recipe(steps=40, batch_size=8, deadline_s=1e4, precision="fp32", **values)
    table = NoiseTable(len(DRAWINGS), 10, 2)
    untaught = build()
    model = adapt(network, DRAWINGS, recipe).model
    assert isinstance(model, LevelPosterior)
    assert (
        estimate(model, DRAWINGS, NEW, table).mean
        < 0.9 * estimate(untaught, DRAWINGS, NEW, table).mean
    )


@pytest.fixture(scope="module")
def adapted() -> nn.Module:
    torch.manual_seed(0)
    network = ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)
    recipe = Recipe(steps=3, batch_size=4, deadline_s=1e4, precision="fp32")
    return adapt(network, DRAWINGS, recipe).model


def test_answers_in_bf16_are_those_in_float32_but_for_rounding() -> None:
    model = build(head=0.1)
    *_, times, c, x_t = noisy(0.4)
    expected = model(x_t, times, c)
    model.recipe = replace(model.recipe, precision="bf16")
    found = model(x_t, times, c)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


def test_estimators_take_it_and_agree(adapted: nn.Module) -> None:
    """None of them may take it for the plain network that it is built around."""
    author = author_estimate(adapted, DRAWINGS, NEW, passes=100)
    ours = estimate(adapted, DRAWINGS, NEW, NoiseTable(len(DRAWINGS), 25, 4))
    plain = estimate(adapted.network, DRAWINGS, NEW, NoiseTable(len(DRAWINGS), 25, 4))  # type: ignore[arg-type]
    error = (author.standard_error**2 + ours.standard_error**2) ** 0.5
    assert abs(author.mean - ours.mean) < 5 * error + 0.002
    assert abs(plain.mean - ours.mean) > 20 * error


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 1, 1)])
def test_times_come_in_the_shapes_that_the_plain_network_takes(
    adapted: nn.Module, shape: tuple[int, ...]
) -> None:
    x_t, t, c = torch.randn(28, 1, 28, 28), torch.rand(28), torch.full((28,), NEW)
    expected = adapted(x_t, t[:, None, None, None], c)
    assert torch.equal(adapted(x_t, t.view(shape), c), expected)


def test_no_image_gives_no_answer(adapted: nn.Module) -> None:
    nothing = torch.zeros(0, 1, 28, 28)
    t, c = torch.zeros(0, 1, 1, 1), torch.zeros(0, dtype=torch.long)
    assert adapted(nothing, t, c).shape == nothing.shape


def test_a_network_in_half_precision_answers_nearly_the_same(adapted: nn.Module) -> None:
    x_t, t, c = torch.randn(4, 1, 28, 28), torch.full((4, 1, 1, 1), 0.7), torch.full((4,), NEW)
    half = copy.deepcopy(adapted).half()
    answer = half(x_t.half(), t.half(), c)
    assert answer.dtype == torch.float16
    torch.testing.assert_close(answer.float(), adapted(x_t, t, c), rtol=0, atol=0.1)


def test_it_moves_between_types_and_through_files(adapted: nn.Module) -> None:
    *_, times, c, x_t = noisy(0.4)
    expected = adapted(x_t, times, c)
    double = copy.deepcopy(adapted).double()(x_t.double(), times.double(), c)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=1e-3, atol=1e-3)

    file = io.BytesIO()
    torch.save(adapted.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(adapted)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x_t, times, c), expected)


def test_the_same_seed_gives_the_same_network() -> None:
    torch.manual_seed(0)
    network = ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)
    recipe = Recipe(steps=3, batch_size=4, deadline_s=1e4)
    first, second = (adapt(network, DRAWINGS, recipe).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
