"""The network's format: names, shapes, channel order and wiring, written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finetune.model.unet import ConditionalDiffusionUNet

N_PARAMETERS = 1_480_721

WEIGHT_SHAPES: dict[str, tuple[int, ...]] = {
    "class_embedding.weight": (10, 16),
    "conv_in.0.weight": (32, 18, 3, 3),
    "conv_in.1.weight": (32,),
    "down_blocks.0.0.weight": (64, 32, 3, 3),
    "down_blocks.0.1.weight": (64,),
    "down_blocks.1.0.weight": (128, 64, 3, 3),
    "down_blocks.1.1.weight": (128,),
    **{f"middle.{i}.0.weight": (128, 128, 3, 3) for i in range(8)},
    **{f"middle.{i}.1.weight": (128,) for i in range(8)},
    "up_blocks.0.0.weight": (128, 32, 3, 3),  # transposed: inputs first
    "up_blocks.0.1.weight": (32,),
    "up_blocks.0.3.weight": (32, 32, 1, 1),
    "up_blocks.0.4.weight": (32,),
    "up_blocks.1.0.weight": (256, 64, 3, 3),
    "up_blocks.1.1.weight": (64,),
    "up_blocks.1.3.weight": (64, 64, 1, 1),
    "up_blocks.1.4.weight": (64,),
    "conv_out.weight": (17, 64, 3, 3),
}
TRANSPOSED = {"up_blocks.0.0.weight", "up_blocks.1.0.weight"}
SHAPES = WEIGHT_SHAPES | {
    name.replace("weight", "bias"): (shape[1] if name in TRANSPOSED else shape[0],)
    for name, shape in WEIGHT_SHAPES.items()
    if name != "class_embedding.weight"
}

OUTPUT_SHAPES: dict[str, tuple[int, ...]] = {
    "conv_in": (32, 28, 28),
    "down_blocks.0": (64, 14, 14),
    "down_blocks.1": (128, 7, 7),
    **{f"middle.{i}": (128, 7, 7) for i in range(8)},
    "up_blocks.1": (64, 14, 14),
    "up_blocks.0": (32, 28, 28),
    "conv_out": (1, 28, 28),
}  # in the order in which they run


@pytest.fixture(scope="module")
def model() -> ConditionalDiffusionUNet:
    torch.manual_seed(0)
    return ConditionalDiffusionUNet()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(2, 1, 28, 28, generator=generator)
    return x_t, torch.tensor([0.25, 0.75]).view(2, 1, 1, 1), torch.tensor([3, 7])


def traced(model: ConditionalDiffusionUNet) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What goes into and comes out of each named block, in running order, and the result."""
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        return [
            module.register_forward_pre_hook(lambda _, args: before.update({name: args[0]})),
            module.register_forward_hook(lambda _, args, out: after.update({name: out})),
        ]

    handles = [h for name in OUTPUT_SHAPES for h in watch(name, model.get_submodule(name))]
    try:
        with torch.no_grad():
            result = model(*inputs())
    finally:
        for handle in handles:
            handle.remove()
    return before, after, result


def test_names_and_shapes_are_those_of_the_course(model: ConditionalDiffusionUNet) -> None:
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == SHAPES


def test_number_of_parameters(model: ConditionalDiffusionUNet) -> None:
    assert sum(p.numel() for p in model.parameters()) == N_PARAMETERS
    assert (model.n_channels_img, model.n_classes) == (1, 10)


def test_blocks_run_in_order_with_the_shapes_of_the_course(
    model: ConditionalDiffusionUNet,
) -> None:
    before, after, result = traced(model)
    assert list(after) == list(OUTPUT_SHAPES)
    assert {name: tuple(out.shape[1:]) for name, out in after.items()} == OUTPUT_SHAPES
    assert result.shape == (2, 1, 28, 28)
    all_channels = torch.nn.functional.conv2d(
        before["conv_out"], model.conv_out.weight, model.conv_out.bias, padding=1
    )
    torch.testing.assert_close(result, all_channels[:, :1])  # the image's channel is the first


def test_input_channels_are_image_class_time(model: ConditionalDiffusionUNet) -> None:
    x_t, t, c = inputs()
    stacked = traced(model)[0]["conv_in"]
    assert stacked.shape == (2, 18, 28, 28)
    assert torch.equal(stacked[:, :1], x_t)
    rows = model.class_embedding.weight[c][:, :, None, None]
    assert torch.equal(stacked[:, 1:17], rows.expand(2, 16, 28, 28))
    assert torch.equal(stacked[:, 17:], t.expand(2, 1, 28, 28))


def test_middle_blocks_are_residual(model: ConditionalDiffusionUNet) -> None:
    before, after, _ = traced(model)
    assert torch.equal(before["middle.0"], after["down_blocks.1"])
    for i in range(7):
        assert torch.equal(before[f"middle.{i + 1}"], before[f"middle.{i}"] + after[f"middle.{i}"])


def test_each_up_block_gets_its_down_blocks_output(model: ConditionalDiffusionUNet) -> None:
    before, after, _ = traced(model)
    expected = {
        "up_blocks.1": (before["middle.7"] + after["middle.7"], after["down_blocks.1"]),
        "up_blocks.0": (after["up_blocks.1"], after["down_blocks.0"]),
        "conv_out": (after["up_blocks.0"], after["conv_in"]),
    }
    for name, (x, skip) in expected.items():
        assert torch.equal(before[name], torch.cat([x, skip], dim=1)), name


@pytest.mark.parametrize("name", ["conv_in", "down_blocks.1", "middle.7", "up_blocks.0"])
def test_blocks_end_in_a_relu_of_eight_normalised_groups(
    name: str, model: ConditionalDiffusionUNet
) -> None:
    block = model.get_submodule(name)
    norms = [m for m in block.modules() if isinstance(m, nn.GroupNorm)]
    assert norms and all(norm.num_groups == 8 for norm in norms)
    assert traced(model)[1][name].min() == 0


def test_gradients_reach_all_that_the_output_depends_on(model: ConditionalDiffusionUNet) -> None:
    out = model(*inputs())
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = dict(
        zip(names, torch.autograd.grad((out * weights).sum(), parameters), strict=True)
    )
    assert [name for name, g in gradients.items() if not g.any()] == []
    # Of conv_out only the image's channel is used, of the embedding only the classes in c.
    used = {
        name: gradients[name].flatten(1).any(1).nonzero().flatten().tolist()
        for name in ("conv_out.weight", "class_embedding.weight")
    }
    assert used == {"conv_out.weight": [0], "class_embedding.weight": [3, 7]}
    assert gradients["conv_out.bias"].nonzero().flatten().tolist() == [0]


def test_images_of_a_batch_do_not_meet(model: ConditionalDiffusionUNet) -> None:
    x_t, t, c = inputs()
    with torch.no_grad():
        together = model(x_t, t, c)
        alone = torch.cat([model(x_t[i : i + 1], t[i : i + 1], c[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_other_sizes_keep_the_image_size() -> None:
    model = ConditionalDiffusionUNet(base_dim=8, n_classes=3, n_updown_blocks=1, n_middle_blocks=1)
    with torch.no_grad():
        assert model(*inputs()[:2], torch.tensor([0, 2])).shape == (2, 1, 28, 28)
