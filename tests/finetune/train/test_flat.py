"""Parameters laid end to end: they stay what they are, and move as they would one by one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.model.unet import ConditionalDiffusionUNet
from finetune.train.flat import FlatParameters, Gradients


def network() -> nn.Module:
    torch.manual_seed(0)
    model = ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def grouped(model: nn.Module) -> list[list[nn.Parameter]]:
    parameters = list(model.parameters())
    return [[p for p in parameters if p.ndim > 1], [], [p for p in parameters if p.ndim == 1]]


def loss(model: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(1)
    x_t, t = torch.randn(3, 1, 28, 28, generator=g), torch.rand(3, 1, 1, 1, generator=g)
    squares: Tensor = model(x_t, t, torch.arange(3)).square().mean()
    return squares


def gradients(model: nn.Module, flat: FlatParameters) -> Gradients:
    return torch.autograd.grad(loss(model), flat.parameters)


def test_values_and_their_order_in_memory_stay() -> None:
    model = network()
    before = [(name, p.detach().clone(), p.stride()) for name, p in model.named_parameters()]
    expected = loss(model)
    flat = FlatParameters(grouped(model), torch.float32)
    assert len(flat.values) == sum(p.numel() for p in model.parameters())
    assert [len(group) for group in flat.groups][1] == 0
    for (name, value, stride), (other, p) in zip(before, model.named_parameters(), strict=True):
        assert name == other and torch.equal(p, value) and p.stride() == stride
    assert torch.equal(loss(model), expected)


def test_parameters_are_what_the_values_become() -> None:
    model = network()
    flat = FlatParameters(grouped(model), torch.float32)
    flat.values.zero_()
    flat.show_values()
    assert all((p == 0).all() for p in model.parameters())


def test_in_bf16_the_first_group_sees_rounded_values() -> None:
    model = network()
    first, _, last = grouped(model)
    flat = FlatParameters([first, [], last], torch.bfloat16)
    assert {p.dtype for p in first} == {torch.bfloat16} and last[0].dtype == torch.float32
    flat.values.fill_(1 + 2**-12)  # bf16 has 8 bits: it can't show the difference to 1
    assert not (first[0] == 1).all()
    flat.show_values()
    assert (first[0] == 1).all() and (last[0] > 1).all()
    flat.release()
    assert first[0].dtype == torch.float32 and (first[0] > 1).all()


def test_gradients_are_taken_over_and_missing_ones_are_zero() -> None:
    model = network()
    expected = copy.deepcopy(model)
    loss(expected).backward()
    flat = FlatParameters(grouped(model), torch.float32)
    for _ in range(2):  # nothing is left of the first time
        flat.take_gradients([gradients(model, flat)])
        order = [p for group in grouped(expected) for p in group]
        wanted = [p.grad for p in order]
        places = zip(flat.masters, wanted, strict=True)
        start = 0
        for master, gradient in places:
            assert gradient is not None
            found = flat.gradients.as_strided(master.shape, master.stride(), start)
            torch.testing.assert_close(found, gradient)
            start += master.numel()
    part = gradients(model, flat)
    flat.take_gradients([part, [None] * len(part), part])  # the sum of several
    torch.testing.assert_close(found, 2 * gradient)
    flat.take_gradients([[None] * len(part)])
    assert not flat.gradients.any()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_an_optimizer_moves_them_as_it_would_one_by_one(decay: float) -> None:
    flatly, singly = network(), network()
    flat = FlatParameters(grouped(flatly), torch.float32)
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": decay}
    together = torch.optim.AdamW([g for g in flat.groups if len(g)], **options)
    apart = torch.optim.AdamW(singly.parameters(), **options)
    for _ in range(3):
        flat.take_gradients([gradients(flatly, flat)])
        together.step()
        flat.show_values()
        apart.zero_grad()
        loss(singly).backward()
        apart.step()
    for p, q in zip(flatly.parameters(), singly.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_released_parameters_share_nothing(dtype: torch.dtype) -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    flat = FlatParameters(grouped(model), dtype)
    flat.release()
    flat.values.zero_()
    flat.show_values()
    for p, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value) and p.dtype == torch.float32
        assert p.untyped_storage().nbytes() == 4 * p.numel()
