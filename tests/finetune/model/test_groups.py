"""Groups of layers, freezing, the added class, and low-rank updates that merge away."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune.model.groups import (
    LowRank,
    add_class,
    add_lora,
    embedding_of,
    freeze_all_but,
    group_of,
    merge_lora,
)
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.recipe import GROUPS, LORA_GROUPS

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def tiny() -> ConditionalDiffusionUNet:
    torch.manual_seed(0)
    return ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)


def inputs(n_classes: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n_classes, 1, 28, 28, generator=generator)
    t = torch.rand(n_classes, 1, 1, 1, generator=generator)
    return x, t, torch.arange(n_classes)


def low_ranks(model: nn.Module) -> list[LowRank]:
    return [module for module in model.modules() if isinstance(module, LowRank)]


def randomize_updates(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    for low_rank in low_ranks(model):
        low_rank.b.data = torch.randn(low_rank.b.shape, generator=generator)


def with_lora(
    groups: Iterable[str], rank: int = 2, scale: float = 0.5
) -> tuple[ConditionalDiffusionUNet, ConditionalDiffusionUNet]:
    """A network as pretrained, and the same one with low-rank updates."""
    model = tiny()
    generator = torch.Generator().manual_seed(3)
    add_lora(model, tuple(groups), rank, scale, generator)
    return tiny(), model


def test_groups_partition_the_parameters() -> None:
    model = ConditionalDiffusionUNet()
    group = {name: group_of(name, p) for name, p in model.named_parameters()}
    assert set(group.values()) == set(GROUPS)

    parts = {
        "input": model.conv_in,
        "down": model.down_blocks,
        "middle": model.middle,
        "up": model.up_blocks,
        "output": model.conv_out,
        "embedding": model.class_embedding,
    }
    names = {id(p): name for name, p in model.named_parameters()}
    for part, module in parts.items():
        for p in module.parameters():
            assert group[names[id(p)]] == ("norm_bias" if p.ndim == 1 else part)


@settings(max_examples=40)
@given(groups=st.sets(st.sampled_from(GROUPS)))
def test_only_the_named_groups_train(groups: set[str]) -> None:
    model = tiny()
    freeze_all_but(model, tuple(groups))
    expected = {n for n, p in model.named_parameters() if group_of(n, p) in groups}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == expected


def test_frozen_groups_get_no_gradient_and_can_be_thawed() -> None:
    model = tiny()
    freeze_all_but(model, ("middle",))
    model(*inputs()).square().sum().backward()
    got = {group_of(n, p) for n, p in model.named_parameters() if p.grad is not None}
    assert got == {"middle"}
    freeze_all_but(model, GROUPS)
    assert all(p.requires_grad for p in model.parameters())


def test_new_class_leaves_the_old_ones_bit_for_bit() -> None:
    model, x = tiny(), inputs()
    rows, answers = embedding_of(model).weight.detach().clone(), model(*x)
    assert add_class(model) == 10
    weight = embedding_of(model).weight
    assert model.n_classes == len(weight) == 11
    assert torch.equal(weight[:10], rows) and torch.equal(weight[10], rows.mean(0))
    assert torch.equal(model(*x), answers)
    assert weight.requires_grad


def test_low_rank_updates_start_at_the_pretrained_network() -> None:
    pretrained, model = with_lora(LORA_GROUPS)
    assert len(low_ranks(model)) == sum(isinstance(m, CONVOLUTIONS) for m in pretrained.modules())
    assert torch.equal(model(*inputs()), pretrained(*inputs()))


def test_merged_network_answers_as_the_unmerged_one() -> None:
    pretrained, model = with_lora(LORA_GROUPS)
    randomize_updates(model)
    before = model(*inputs())
    merge_lora(model)
    after = model(*inputs())
    assert torch.allclose(after, before, atol=1e-5)
    assert not torch.allclose(after, pretrained(*inputs()), atol=1e-2)


def test_merged_network_is_the_plain_one_again() -> None:
    pretrained, model = with_lora(LORA_GROUPS)
    randomize_updates(model)
    merge_lora(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in pretrained.modules()]
    assert set(model.state_dict()) == set(pretrained.state_dict())
    pretrained.load_state_dict(model.state_dict())
    assert torch.equal(model(*inputs()), pretrained(*inputs()))


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(
    ("group", "name"), [("down", "down_blocks.1.0"), ("up", "up_blocks.1.0")]
)  # a convolution and a transposed one
def test_update_is_a_matrix_of_its_rank(group: str, name: str, rank: int) -> None:
    pretrained, model = with_lora([group], rank)
    randomize_updates(model)
    merge_lora(model)
    weight = model.get_parameter(f"{name}.weight")
    update = (weight - pretrained.get_parameter(f"{name}.weight")).flatten(1)
    singular = torch.linalg.svdvals(update.detach())
    assert singular[rank - 1] > 0.01 * singular[0]
    assert singular[rank] < 1e-5 * singular[0]


def test_update_is_the_scaled_product_of_its_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, generator=generator)
    low_rank = LowRank(weight, 2, 0.25, generator)
    low_rank.b.data = torch.randn(6, 2, generator=generator)
    for o, i, y, x in [(0, 0, 0, 0), (5, 1, 2, 0), (2, 3, 1, 2)]:
        product = low_rank.b[o] @ low_rank.a[:, i * 9 + y * 3 + x]
        expected = weight[o, i, y, x] + 0.25 * product
        assert torch.allclose(low_rank(weight)[o, i, y, x], expected)


@pytest.mark.parametrize("group", LORA_GROUPS)
def test_only_convolutions_of_the_named_group_are_updated(group: str) -> None:
    pretrained, model = with_lora([group])
    randomize_updates(model)
    merge_lora(model)
    old = pretrained.state_dict()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, old[n])}
    assert changed == {n for n, p in pretrained.named_parameters() if group_of(n, p) == group}


def test_only_factors_and_named_groups_train() -> None:
    model = tiny()
    plain = {n for n, p in model.named_parameters() if group_of(n, p) in ("output", "norm_bias")}
    freeze_all_but(model, ("middle", "output", "norm_bias"))
    add_lora(model, ("middle", "up"), 2, 1.0, torch.Generator().manual_seed(0))
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    factors = {f"{n}.{f}" for n, m in model.named_modules() if isinstance(m, LowRank) for f in "ab"}
    assert names == plain | factors, "a convolution that has factors does not train itself"
    assert {name.split(".")[0] for name in factors} == {"middle", "up_blocks"}


def test_factors_are_drawn_from_the_generator_alone() -> None:
    state = torch.get_rng_state()

    def factors(seed: int) -> Tensor:
        weight = torch.zeros(4, 4, 3, 3)
        return LowRank(weight, 2, 1.0, torch.Generator().manual_seed(seed)).a.detach()

    assert torch.equal(factors(0), factors(0)) and not torch.equal(factors(0), factors(1))
    assert torch.equal(torch.get_rng_state(), state)
