"""Narrow group norms: the same function and gradients, and only where torch's are slow."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune.flow import image_losses
from finetune.machine.device import autocast, channels_last
from finetune.model.norms import NarrowGroupNorm, speed_up_norms
from finetune.model.unet import ConditionalDiffusionUNet

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(base_dim: int = 32) -> Any:
    """With gains and offsets that are not those of a new norm."""
    torch.manual_seed(0)
    model = ConditionalDiffusionUNet(base_dim, n_middle_blocks=2).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return channels_last(model, CPU)


def faster(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    speed_up_norms(model)
    return model


def gradients(model: nn.Module, precision: str = "fp32") -> dict[str, Tensor]:
    x, e, t = normal(3, 1, 28, 28), normal(3, 1, 28, 28, seed=1), normal(3, 1, 1, 1).sigmoid()
    with autocast(CPU, precision):
        loss = image_losses(model, x, e, t, torch.arange(3)).mean()
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of all gradients together, relative to ``b``."""
    assert a.keys() == b.keys()
    squares = sum((a[n] - b[n]).square().sum() for n in b) / sum(b[n].square().sum() for n in b)
    return float(squares) ** 0.5


@settings(max_examples=30)
@given(
    n=st.integers(1, 4),
    n_groups=st.sampled_from([1, 2, 8]),
    width=st.integers(1, 6),
    size=st.integers(1, 9),
    offset=st.floats(-3, 3),
    channels_last=st.booleans(),
)
def test_values_are_those_of_torch(
    n: int, n_groups: int, width: int, size: int, offset: float, channels_last: bool
) -> None:
    channels = n_groups * width
    x = normal(n, channels, size, size + 1) + offset
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    norm = nn.GroupNorm(n_groups, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    fast = copy.deepcopy(norm)
    speed_up_norms(fast)
    assert type(fast) is NarrowGroupNorm
    torch.testing.assert_close(fast(x), norm(x), rtol=1e-3, atol=1e-3)
    assert fast(x).stride() == x.stride()


def test_gradients_of_a_network_are_what_they_were() -> None:
    model = network()
    assert distance(gradients(faster(model)), gradients(model)) < 1e-5


def test_bf16_rounds_no_more_than_torch_does() -> None:
    model = network()
    exact = gradients(copy.deepcopy(model))
    rounded = distance(gradients(copy.deepcopy(model), "bf16"), exact)
    assert 0 < distance(gradients(faster(model), "bf16"), exact) < 1.5 * rounded


def test_only_narrow_norms_are_exchanged_and_names_stay() -> None:
    model = network()
    fast = faster(model)
    assert fast.state_dict().keys() == model.state_dict().keys()
    widths = {
        type(m): m.num_channels // m.num_groups
        for m in fast.modules()
        if isinstance(m, nn.GroupNorm)
    }
    assert widths[NarrowGroupNorm] < 16 <= widths[nn.GroupNorm]


class OwnNorm(nn.GroupNorm):
    """Somebody's own: it is left alone."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("norm", [OwnNorm(2, 8), nn.GroupNorm(2, 8, affine=False)])
def test_norms_of_another_kind_are_left_alone(norm: nn.Module) -> None:
    kind = type(norm)
    speed_up_norms(norm)
    assert type(norm) is kind


def test_what_is_no_batch_of_images_goes_to_torch() -> None:
    norm = nn.GroupNorm(2, 8)
    speed_up_norms(norm)
    x = normal(3, 8, 5)
    assert torch.equal(norm(x), nn.functional.group_norm(x, 2, norm.weight, norm.bias))


def test_it_can_be_copied_and_pickled() -> None:
    model = faster(network(base_dim=8))
    x, t, c = normal(1, 1, 28, 28), torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.long)
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(again(x, t, c), model(x, t, c))
