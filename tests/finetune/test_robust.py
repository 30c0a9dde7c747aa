"""What a machine or a caller may do to a run: a GPU that fails, another network, many drawings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.adapt import adapt, finetune_model
from finetune.augment.mix import Augmenter
from finetune.data.runes import DrawingDataset, open_drawn, resize_bitmaps, split_drawings
from finetune.data.synthetic import draw_rune
from finetune.machine.device import is_gpu_failure, training_device
from finetune.model.checkpoints import list_networks, load_network
from finetune.model.groups import with_mean_class
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.recipe import Recipe

DRAWINGS = DrawingDataset(resize_bitmaps(draw_rune("ing", 4, seed=0), "bilinear"))
RECIPE = Recipe(steps=3, batch_size=2, render="direct", precision="fp32", deadline_s=1000.0)


def tiny() -> ConditionalDiffusionUNet:
    torch.manual_seed(0)
    return ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (torch.cuda.OutOfMemoryError("no room"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
        (RuntimeError("size of tensor a (3) must match the size of tensor b (4)"), False),
    ],
)
def test_a_gpu_failure_is_known_as_such(error: RuntimeError, failed: bool) -> None:
    assert is_gpu_failure(error) == failed


def test_a_gpu_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, home, expected in (
        (False, "cpu", "cpu"),
        (True, "cpu", "cuda"),
        (True, "cuda:1", "cuda:1"),
        (False, "mps", "mps"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert training_device(torch.device(home)) == torch.device(expected)


@pytest.mark.parametrize("outside", [False, True])
def test_bf16_steps_use_the_weights_of_their_own_step(outside: bool) -> None:
    """Automatic casting keeps casts of weights while blocks are nested: none may get old."""
    pretrained = load_network(list_networks()[0])
    drawings = split_drawings(open_drawn().drawings("thorn"), 0).train

    def change(precision: str) -> Tensor:
        recipe = Recipe(
            steps=12,
            batch_size=4,
            output="velocity",
            render="direct",
            precision=precision,
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=outside):
            adapted = adapt(pretrained, drawings, recipe).model.state_dict()
        before = pretrained.state_dict()
        same = [k for k in before if not k.startswith("class_embedding")]
        return torch.cat([(adapted[k] - before[k]).flatten() for k in same])

    fp32, bf16 = change("fp32"), change("bf16")
    assert (bf16 - fp32).norm() < 0.4 * fp32.norm()  # with old weights: 0.5


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = tiny()


def not_finite() -> nn.Module:
    network = tiny()
    nn.init.constant_(network.middle[0][0].bias, float("nan"))  # type: ignore[index, arg-type]
    return network


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (lambda: with_mean_class(tiny()), "has 11 classes"),
        (not_finite, r"middle\.0\.0\.bias is not finite"),
        (Wrapped, "is a Wrapped"),
        (lambda: nn.Linear(2, 2), "is a Linear"),
        (lambda: None, "is a NoneType"),
        (lambda: tiny().state_dict(), "is a OrderedDict"),
        (lambda: finetune_model(tiny(), DRAWINGS, RECIPE), "is a LevelPosterior"),
    ],
)
def test_another_network_than_the_pretrained_one_is_refused(network: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"^the network.*({told}).*; give the course's network"):
        finetune_model(network(), DRAWINGS, RECIPE)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_what_torch_wraps_around_a_network_is_taken_off(wrap: Any) -> None:
    plain, wrapped = (finetune_model(n, DRAWINGS, RECIPE) for n in (tiny(), wrap(tiny())))
    assert type(wrapped) is type(plain)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, wrapped.state_dict()[name])


def test_of_many_drawings_the_pictures_are_warped_so_that_the_deadline_holds() -> None:
    few = torch.cat([image[None] for image, _ in DRAWINGS])
    for n, by_pen in ((4, True), (400, False)):
        drawings = few.repeat(n // 4, 1, 1, 1)
        augment = Augmenter(drawings, Recipe(blend=0.0), torch.Generator().manual_seed(0))
        assert augment.by_pen == by_pen
        assert augment(8).isfinite().all()
