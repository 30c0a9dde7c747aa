"""The row of a new class, groups of layers to freeze, and low-rank updates (LoRA)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# Groups by the first part of a parameter's name; vectors are a group of their own.
_GROUP_OF_PREFIX = {
    "class_embedding": "embedding",
    "conv_in": "input",
    "down_blocks": "down",
    "middle": "middle",
    "up_blocks": "up",
    "conv_out": "output",
}
_N_DIGITS = 10  # classes of a pretrained network


def group_of(name: str, parameter: Tensor) -> str:
    """The group of a parameter of the U-Net, by its name and shape."""
    group = _GROUP_OF_PREFIX[name.split(".")[0]]
    return "norm_bias" if parameter.ndim == 1 else group


def embedding_of(model: nn.Module) -> nn.Embedding:
    """The class embedding of the U-Net, one row for each class."""
    embedding = model.class_embedding
    assert isinstance(embedding, nn.Embedding)
    return embedding


def course_network(model: Any) -> nn.Module:
    """A pretrained network, without torch's wrappers.

    Raises:
        ValueError: it is not the course's network, was adapted before, or is not finite.
    """
    for wrapper in ("_orig_mod", "module"):  # of `torch.compile`, of `nn.DataParallel`
        model = getattr(model, wrapper, model)
    give = "give the course's network as it was pretrained, on ten digits"
    if not (hasattr(model, "class_embedding") and hasattr(model, "conv_out")):
        raise ValueError(f"the network is a {type(model).__name__}; {give}")
    if (n := len(model.class_embedding.weight)) > _N_DIGITS:
        raise ValueError(f"the network has {n} classes; {give}")
    for name, parameter in model.named_parameters():
        if not parameter.detach().isfinite().all():
            raise ValueError(f"the network's {name} is not finite; {give}")
    network: nn.Module = model
    return network


def add_class(model: Any) -> int:
    """Append the mean row (16,) to the class embedding; returns the new class's label."""
    rows = model.class_embedding.weight.detach()
    weight = torch.cat([rows, rows.mean(0, keepdim=True)])
    model.class_embedding = nn.Embedding.from_pretrained(weight, freeze=False)
    model.n_classes = len(weight)
    return len(rows)


def with_mean_class(model: nn.Module) -> nn.Module:
    """A copy of a pretrained network with a new class, the mean of the others."""
    model = copy.deepcopy(model)
    add_class(model)
    return model


class LowRank(nn.Module):
    """Weight W + scale * B A, seen as a matrix with its first axis as rows.

    Hu et al., "LoRA" (2021), section 4.1, for kernels of any shape: W (o, i, k, k) of a
    convolution and W (i, o, k, k) of a transposed one become matrices of o (or i) rows.
    B starts at zero, so that the first step sees the pretrained network.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        # A's deviation gives A x unit scale for inputs of unit scale.
        a = torch.randn(rank, columns, generator=generator, device=weight.device)
        self.a = nn.Parameter(a / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a).view_as(weight)


def add_lora(
    model: nn.Module,
    groups: tuple[str, ...],
    rank: int,
    scale: float,
    generator: torch.Generator,
) -> None:
    """Give every convolution in ``groups`` a low-rank update; its own weight is frozen."""
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            continue
        if _GROUP_OF_PREFIX[name.split(".")[0]] in groups:
            module.weight.requires_grad_(False)
            low_rank = LowRank(module.weight, rank, scale, generator)
            parametrize.register_parametrization(module, "weight", low_rank)


def merge_lora(model: nn.Module) -> None:
    """Merge the low-rank updates into the weights, which restores the plain architecture."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def freeze_all_but(model: nn.Module, groups: tuple[str, ...]) -> None:
    """Freeze all parameters except those in ``groups``."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(group_of(name, parameter) in groups)
