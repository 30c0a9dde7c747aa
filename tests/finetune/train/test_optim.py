"""What moves the weights: sums of parts, clipped apart, at rates of their own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.model.groups import add_class, freeze_all_but
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.recipe import GROUPS, Recipe
from finetune.train.optim import Weights, lr_factor


def network() -> nn.Module:
    torch.manual_seed(0)
    model = ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)
    add_class(model)
    return model


def weights(**fields: Any) -> tuple[nn.Module, nn.Module, Weights]:
    model, head = network(), nn.Linear(3, 2)
    freeze_all_but(model, GROUPS)
    return model, head, Weights(model, head, Recipe(**fields))


def some_gradients(made: Weights, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=g) for p in made.parameters]


def moved(made: Weights, *parts: list[Tensor]) -> list[Tensor]:
    before = [p.detach().clone() for p in made.parameters]
    made.set_rates(0.5, 0.01)
    made.step(parts)
    return [p.detach() - b for p, b in zip(made.parameters, before, strict=True)]


def test_parts_are_added() -> None:
    a, b = some_gradients(weights()[2], 0), some_gradients(weights()[2], 1)
    whole = [x + y for x, y in zip(a, b, strict=True)]
    for found, expected in zip(moved(weights()[2], a, b), moved(weights()[2], whole), strict=True):
        assert torch.equal(found, expected)


def test_gradients_of_another_layout_move_the_same_numbers() -> None:
    """Gradients come in whichever order in memory suited torch, not in their parameter's."""
    torch.manual_seed(0)
    expected, last = weights()[2], weights()[2]
    for parameter in last.parameters:
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    gradients = some_gradients(expected, 0)
    for one, other in zip(moved(expected, gradients), moved(last, gradients), strict=True):
        torch.testing.assert_close(one, other)


def test_network_and_head_are_clipped_apart() -> None:
    """A huge gradient of the head takes nothing from the network's, and neither exceeds 1."""
    made = weights(clip_norm=1.0)[2]
    gradients = [torch.full_like(p, 1e-4) for p in made.parameters]
    gradients[-1] = torch.full_like(gradients[-1], 1e6)
    made.set_rates(0.5, 0.01)
    made.step([gradients])
    grads = [p.grad for p in made.parameters if p.grad is not None]
    assert torch.equal(grads[0], torch.full_like(grads[0], 1e-4))
    norm = torch.cat([g.flatten() for g in grads[-2:]]).norm()
    assert norm.item() == pytest.approx(1, rel=1e-4)


def test_without_a_bound_nothing_is_clipped() -> None:
    made = weights(clip_norm=0.0)[2]
    gradients = [torch.full_like(p, 100.0) for p in made.parameters]
    made.step([gradients])
    assert all(p.grad is not None and (p.grad == 100).all() for p in made.parameters)


def test_the_head_has_a_rate_of_its_own() -> None:
    made = weights(head_lr_factor=3.0, lr=1e-3, warmup=0.0, schedule="constant")[2]
    changes = moved(made, [torch.ones_like(p) for p in made.parameters])
    # The first step of Adam is as long as the rate.
    assert changes[0].abs().max().item() == pytest.approx(1e-3, rel=1e-3)
    assert changes[-1].abs().max().item() == pytest.approx(3e-3, rel=1e-3)


def test_schedules() -> None:
    cosine = Recipe(schedule="cosine", warmup=0.2)
    assert lr_factor(cosine, 0.0, 0.1) == pytest.approx(0.5)
    assert lr_factor(cosine, 0.2) == 1
    assert lr_factor(cosine, 0.6) == pytest.approx(0.5)
    assert lr_factor(cosine, 1.0) == pytest.approx(0, abs=1e-12)
    linear = Recipe(schedule="linear", warmup=0.0)
    assert lr_factor(linear, 0.25) == pytest.approx(0.75)
    assert math.isclose(lr_factor(Recipe(schedule="constant", warmup=0.0), 0.9), 1)
