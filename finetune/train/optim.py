"""The trained parameters with everything that moves them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model.groups import trainable
from ..recipe import Recipe
from .flat import FlatParameters, Gradients


class Weights:
    """The parameters of a network that train, those of a head among them, and their optimizer.

    Args:
        dtype: of matrices while they train.
    """

    def __init__(
        self, model: nn.Module, head: Sequence[nn.Parameter], recipe: Recipe, dtype: torch.dtype
    ) -> None:
        self.recipe = recipe
        embedding, vectors, matrices = [], [], []
        for name, parameter in trainable(model):
            if name.startswith("class_embedding"):
                embedding.append(parameter)
            elif parameter.ndim == 1:
                vectors.append(parameter)
            else:
                matrices.append(parameter)
        groups = [matrices, vectors, embedding, list(head)]
        self.flat = FlatParameters(groups, dtype)
        n_head = sum(p.numel() for p in head)
        sizes = [len(self.flat.values) - n_head, n_head]
        # Apart: the head's gradient is the larger one, and would slow down the rest.
        self.clipped = [part for part in self.flat.gradients.split(sizes) if len(part)]
        # Digits' rows get no gradient, and must not decay either; vectors are not decayed,
        # as is usual.
        factors = (1.0, 1.0, 1.0, recipe.head_lr_factor)
        decays = (recipe.weight_decay, 0.0, 0.0, 0.0)
        some = [k for k, group in enumerate(self.flat.groups) if len(group)]
        self.factors = [factors[k] for k in some]
        self.optimizer = _adamw(
            [{"params": [self.flat.groups[k]], "weight_decay": decays[k]} for k in some], recipe
        )
        self.rates: Sequence[float] | Sequence[Tensor] = [0.0] * len(some)
        self._rates_there: Tensor | None = None
        device = self.flat.values.device
        if device.type == "cuda":
            # Always in the same place of its memory: a captured step finds them there.
            self._rates_there = torch.zeros(len(self.rates), device=device)
            self.rates = self._rates_there.unbind()

    def set_rates(self, share: float, advance: float) -> None:
        """The next step is made at ``share`` of the schedule and covers ``advance`` of it."""
        rates = self._rates_at(share, advance)
        if self._rates_there is None:
            self.rates = rates
        else:
            self._rates_there.copy_(torch.tensor(rates))

    def step(self, parts: Sequence[Gradients]) -> None:
        """Move the weights down the sum of these gradients, by the rates that were set."""
        self.flat.take_gradients(parts)
        if self.recipe.clip_norm:
            for gradient in self.clipped:
                # As `clip_grad_norm_` does.
                gradient.mul_((self.recipe.clip_norm / (gradient.norm() + 1e-6)).clamp(max=1))
        for group, lr in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr
        self.optimizer.step()
        with torch.no_grad():
            self.flat.show_values()

    def finish(self) -> None:
        """Give the model's parameters memory of their own again."""
        self.flat.release()

    def _rates_at(self, share: float, advance: float) -> list[float]:
        """Learning rates of the optimizer's groups."""
        lr = self.recipe.lr * lr_factor(self.recipe, share, advance)
        return [lr * factor for factor in self.factors]


def lr_factor(recipe: Recipe, share: float, advance: float = 0.0) -> float:
    """Factor of the learning rate for a step from ``share`` to ``share + advance``, in [0, 1]."""
    if share + advance < recipe.warmup:
        return (share + advance) / recipe.warmup
    done = (share - recipe.warmup) / (1 - recipe.warmup)
    done = min(max(done, 0.0), 1.0)
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if recipe.schedule == "linear" else 1.0


def _adamw(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW in one fused kernel where this torch has one for this device."""
    options: dict[str, Any] = {"lr": recipe.lr, "betas": (0.9, recipe.beta2)}
    if groups[0]["params"][0].device.type == "cuda":
        return torch.optim.AdamW(groups, fused=True, capturable=True, **options)
    try:
        # Of copies: the optimizer writes into its groups, before it finds that it can't be.
        return torch.optim.AdamW([dict(g) for g in groups], fused=True, **options)
    except RuntimeError:  # on CPUs before torch 2.4
        return torch.optim.AdamW(groups, **options)
