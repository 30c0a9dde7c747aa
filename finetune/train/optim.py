"""The parameters that train, their optimizer and its learning rates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..recipe import Recipe


class Weights:
    """The trainable parameters of a network and its head, with their optimizer."""

    def __init__(self, model: nn.Module, head: nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        of_network = [p for p in model.parameters() if p.requires_grad]
        of_head = list(head.parameters())
        self.parameters = [*of_network, *of_head]
        groups = [
            {"params": of_network, "factor": 1.0},
            {"params": of_head, "factor": recipe.head_lr_factor},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, betas=(0.9, recipe.beta2), weight_decay=0.0, fused=True
        )

    def set_rates(self, share: float, advance: float) -> None:
        """Set the rates of a step at ``share`` of the schedule that covers ``advance`` of it."""
        lr = self.recipe.lr * lr_factor(self.recipe, share, advance)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]

    def step(self, parts: list[tuple[Tensor, ...]]) -> None:
        """Update the weights by the sum of the parts' gradients, at the rates that were set."""
        for parameter, first, *others in zip(self.parameters, *parts, strict=True):
            # In the parameter's memory layout, which the fused kernel needs.
            parameter.grad = torch.empty_like(parameter).copy_(first)
            for gradient in others:
                parameter.grad += gradient
        if self.recipe.clip_norm:
            # Clipped apart: the head's gradient is larger, and would slow down the rest.
            for group in self.optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], self.recipe.clip_norm)
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
