"""The trained parameters with everything that moves them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..recipe import Recipe

# Of each parameter in turn; none where the loss does not depend on it.
Gradients = Sequence[Tensor | None]


class Weights:
    """The parameters of a network that train, those of a head among them, and their optimizer."""

    def __init__(self, model: nn.Module, head: nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        # Vectors are not decayed, as is usual, nor the digits' rows, which do not train.
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            decays = parameter.ndim > 1 and not name.startswith("class_embedding")
            (matrices if decays else others).append(parameter)
        of_head = list(head.parameters())
        self.parameters = [*matrices, *others, *of_head]
        # Apart: the head's gradient is the larger one, and would slow down the rest.
        self._clipped = [[*matrices, *others], of_head]
        groups = [
            {"params": matrices, "factor": 1.0, "weight_decay": recipe.weight_decay},
            {"params": others, "factor": 1.0, "weight_decay": 0.0},
            {"params": of_head, "factor": recipe.head_lr_factor, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], betas=(0.9, recipe.beta2), fused=True
        )

    def set_rates(self, share: float, advance: float) -> None:
        """The next step is made at ``share`` of the schedule and covers ``advance`` of it."""
        lr = self.recipe.lr * lr_factor(self.recipe, share, advance)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]

    def step(self, parts: Sequence[Gradients]) -> None:
        """Move the weights down the sum of these gradients, by the rates that were set."""
        for parameter, *shares in zip(self.parameters, *parts, strict=True):
            # Laid out in memory as the parameter is: the fused kernel takes that for granted.
            parameter.grad = torch.zeros_like(parameter)
            for share in shares:
                if share is not None:
                    parameter.grad.add_(share)
        if self.recipe.clip_norm:
            for part in self._clipped:
                nn.utils.clip_grad_norm_(part, self.recipe.clip_norm)
        self.optimizer.step()


def lr_factor(recipe: Recipe, share: float, advance: float = 0.0) -> float:
    """Factor of the learning rate for a step from ``share`` to ``share + advance``, in [0, 1]."""
    if share + advance < recipe.warmup:
        return (share + advance) / recipe.warmup
    done = (share - recipe.warmup) / (1 - recipe.warmup)
    done = min(max(done, 0.0), 1.0)
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if recipe.schedule == "linear" else 1.0
