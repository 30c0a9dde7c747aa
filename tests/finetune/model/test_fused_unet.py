"""The fused network: the same function, the same gradients, and only where it may stand in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune.adapt import adapt
from finetune.data.runes import resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.flow import image_losses
from finetune.machine.device import autocast, channels_last
from finetune.model import fused_unet as fused
from finetune.model.fused_unet import FusedUNet, _Conv, _ConvNormReLU, can_fuse
from finetune.model.groups import add_lora
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.recipe import LORA_GROUPS, Recipe

CPU = torch.device("cpu")


def network(base_dim: int = 32, n_middle: int = 2, n_updown: int = 2) -> Any:
    """With gains and offsets that are not those of a new norm."""
    torch.manual_seed(0)
    model = ConditionalDiffusionUNet(
        base_dim, n_updown_blocks=n_updown, n_middle_blocks=n_middle
    ).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return channels_last(model, CPU)


def batch(n: int = 3, seed: int = 0) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x, e = torch.rand(n, 1, 28, 28, generator=g), torch.randn(n, 1, 28, 28, generator=g)
    return x, e, torch.rand(n, 1, 1, 1, generator=g), torch.randint(0, 10, (n,), generator=g)


def gradients(call: Any, model: nn.Module, precision: str = "fp32") -> dict[str, Tensor]:
    model.zero_grad()
    with autocast(CPU, precision):
        loss = image_losses(call, *batch()).mean()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of all gradients together, relative to ``b``."""
    assert a.keys() == b.keys()
    squares = sum((a[n] - b[n]).square().sum() for n in b) / sum(b[n].square().sum() for n in b)
    return float(squares) ** 0.5


@settings(max_examples=15, deadline=None)
@given(
    base_dim=st.sampled_from([8, 16, 32]),
    n_middle=st.integers(0, 2),
    n_updown=st.integers(1, 2),
    n=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_velocities_are_those_of_the_network(
    base_dim: int, n_middle: int, n_updown: int, n: int, seed: int
) -> None:
    model = network(base_dim, n_middle, n_updown)
    x, _, t, c = batch(n, seed)
    torch.testing.assert_close(
        FusedUNet(model, torch.float32)(x, t, c), model(x, t, c), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_written_out_gradients_are_the_derivatives(transposed: bool) -> None:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()

    x, weight, bias = normal(2, 4, 5, 5), normal(4, 4, 3, 3), normal(4)
    how = _Conv((2, 2), (1, 1), (1, 1), transposed, (1, 1) if transposed else (0, 0), 1)

    def call(*tensors: Tensor) -> Tensor:
        out: Tensor = _ConvNormReLU.apply(*tensors, how, 2, 1e-5)
        return out

    assert torch.autograd.gradcheck(call, (x, weight, bias, normal(4), normal(4)))


def test_gradients_of_the_whole_are_those_of_the_network() -> None:
    model = network()
    assert distance(gradients(FusedUNet(model, torch.float32), model), gradients(model, model)) < (
        1e-5
    )


def test_bf16_rounds_no_more_than_automatic_casting() -> None:
    model = network()
    exact = gradients(model, model)
    casting = distance(gradients(model, model, "bf16"), exact)
    fused = distance(gradients(FusedUNet(model, torch.bfloat16), model), exact)
    assert 0 < fused < 1.5 * casting


def test_frozen_weights_get_no_gradient_and_the_others_keep_theirs() -> None:
    model = network()
    everything = gradients(FusedUNet(model, torch.float32), model)
    model.conv_in.requires_grad_(False)
    model.up_blocks[0][0].weight.requires_grad_(False)
    some = gradients(FusedUNet(model, torch.float32), model)
    assert everything.keys() - some.keys() == {
        *(f"conv_in.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")),
        "up_blocks.0.0.weight",
    }
    assert distance(some, {name: everything[name] for name in some}) < 1e-6


def test_low_rank_updates_get_their_gradients() -> None:
    model = network()
    add_lora(model, LORA_GROUPS, 2, 1.0, torch.Generator().manual_seed(0))
    fused = gradients(FusedUNet(model, torch.float32), model)
    assert any("parametrizations" in name for name in fused)
    assert distance(fused, gradients(model, model)) < 1e-5


class Different(ConditionalDiffusionUNet):
    """The same attributes, another function."""

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return super().forward(x_t, t, c) + 0.01 * x_t


def test_only_a_network_that_agrees_is_fused() -> None:
    model = network(base_dim=8)
    assert can_fuse(model)
    assert not can_fuse(Different(base_dim=8))
    silu = copy.deepcopy(model)
    silu.conv_in[2] = nn.SiLU()
    assert not can_fuse(silu)
    assert not can_fuse(nn.Conv2d(1, 1, 3))
    short = copy.deepcopy(model)
    del short.middle
    assert not can_fuse(short)


@pytest.mark.parametrize("lora", [False, True])
def test_an_adapted_network_is_the_same_either_way(
    monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    drawings = resize_bitmaps(draw_rune("ing", 4, seed=0), "bilinear")
    kind: dict[str, Any] = {"lora_rank": 2, "lora_groups": LORA_GROUPS} if lora else {}
    recipe = Recipe(
        steps=8, batch_size=4, render="direct", precision="fp32", deadline_s=1000.0, **kind
    )
    model = network(base_dim=8)

    def losses() -> list[float]:
        seen: list[float] = []
        adapt(model, drawings, recipe, lambda progress: seen.append(progress.loss))
        return seen

    fused = losses()
    monkeypatch.setattr("finetune.train.learners.can_fuse", lambda model: False)
    called = losses()
    assert fused == pytest.approx(called, rel=5e-3) and len(called) == 8


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernel, stride, padding", [(3, 1, 1), (3, 2, 1), (1, 1, 0), (5, 3, 2)])
def test_a_weights_gradient_is_one_matrix_product(
    transposed: bool, kernel: int, stride: int, padding: int
) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 7, 6, generator=g, dtype=torch.float64)
    shape = (3, 4) if transposed else (4, 3)
    weight = torch.randn(*shape, kernel, kernel, generator=g, dtype=torch.float64)
    more = (stride - 1,) * 2 if transposed else (0, 0)
    how = fused._Conv((stride,) * 2, (padding,) * 2, (1, 1), transposed, more, 1)
    dy = torch.randn(
        torch.convolution(x, weight, None, *how).shape, generator=g, dtype=torch.float64
    )
    expected = torch.ops.aten.convolution_backward(dy, x, weight, None, *how, [False, True, False])[
        1
    ]
    found = fused._weight_gradient_as_product(how, dy, x, weight)
    torch.testing.assert_close(found, expected)
