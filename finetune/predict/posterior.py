"""A velocity network that answers with a posterior over each pixel's grey level.

With x_t = (1 - t) x + t e the velocity of least error is (x_t - E[x | x_t]) / t.  The network gives
each level a logit; Bayes' rule adds the pixel's own likelihood, which is exact.
"""

from __future__ import annotations

from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from ..machine.device import autocast
from ..recipe import Recipe
from .bank import ImageBank
from .head import LevelHead
from .levels import GreyLevels

_LEAST_T_IN_TRAINING = 0.01  # the flow loss divides by the square of t
_LEAST_T = 1e-6  # at t = 0 the noise can't be seen, and its mean, 0, is the best prediction


class LevelPosterior(nn.Module):
    """The course's network with a head for the levels of its newest class.

    Args:
        network: its last layer is a convolution called ``conv_out``.
        levels: grey levels of the new class's drawings.
        label: the new class; other classes get the network's own velocity.
        recipe: its fields ``head_hidden``, ``level_weight`` and ``precision`` are used.
        generator: random numbers for the `LevelHead`.
        bank: mixed into answers, and into the targets of training.
    """

    def __init__(
        self,
        network: Any,
        levels: GreyLevels,
        label: int,
        recipe: Recipe,
        generator: torch.Generator,
        bank: ImageBank | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.head = LevelHead(network.conv_out, len(levels.means), recipe.head_hidden, generator)
        self.levels = levels
        self.label = label
        self.n_channels_img = network.n_channels_img
        self.n_classes = network.n_classes
        self.bank = bank
        self.recipe = recipe

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """The velocity at ``x_t`` (B, 1, 28, 28) for times t (B, 1, 1, 1) and labels c (B,)."""
        learnt = c == self.label
        if not learnt.any():
            velocity: Tensor = self.network(x_t, t, c)
            return velocity
        t = t.to(x_t).reshape(-1, 1, 1, 1)
        log_probability, means = self.levels.posterior(x_t, t)
        p = (self.logits(x_t, t, c) + log_probability).softmax(1)
        x = (p * means).sum(1, keepdim=True)
        if self.bank is not None:
            x = self.bank(x, x_t, t)
        velocity = torch.where(t < _LEAST_T, -x, (x_t - x) / t.clamp(min=_LEAST_T))
        if learnt.all():
            return velocity
        return torch.where(learnt[:, None, None, None], velocity, self.network(x_t, t, c))

    def logits(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """The network's logit of each level, (B, K, 28, 28) in the type of ``x_t``."""
        half = x_t.dtype in (torch.float16, torch.bfloat16)  # then everything is computed in it
        with autocast(x_t.device, "fp32" if half else self.recipe.precision):
            logits: Tensor = self.head(last_features(self.network, x_t, t, c))
        # NCHW: sums over levels are faster than channels_last here.
        return logits.to(x_t.dtype).contiguous()

    def targets(self, x: Tensor) -> Tensor:
        """Further training targets of images x (n, 1, 28, 28): their levels (n, 28, 28)."""
        return self.levels.nearest(x)

    def losses(
        self, x: Tensor, t: Tensor, levels: Tensor, e: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The training loss for images x (B, 1, 28, 28) with noises e, times t, labels c.

        Returns:
            The flow loss, with less weight near t = 0, plus the weighted cross entropy of the
            pixels' ``levels``; and the flow loss alone.  Both are means over the batch.
        """
        x_t = (1 - t) * x + t * e
        with torch.no_grad():
            log_probability, means = self.levels.posterior(x_t, t)
            limit = self.recipe.target_limit
            target = x if self.bank is None else self.bank.toward_posterior(x, x_t, t, limit)
        log_p = (self.logits(x_t, t, c) + log_probability).log_softmax(1)
        mean = (log_p.exp() * means).sum(1, keepdim=True)
        # velocity - (e - x) equals minus this error.
        error = (mean - target) / t.clamp(min=_LEAST_T_IN_TRAINING)
        loss = error.square().mean()
        entropy = -log_p.gather(1, levels[:, None]).mean()
        return loss + self.recipe.level_weight * entropy, loss.detach()


def last_features(network: Any, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """The input of the network's last convolution, (B, C, 28, 28), for any forward method."""
    seen: dict[int, Tensor] = {}  # by thread, because others may use the network, too
    conv = network.conv_out
    hook = conv.register_forward_pre_hook(lambda _, inputs: seen.update({get_ident(): inputs[0]}))
    try:
        network(x_t, t, c)
    finally:
        hook.remove()
    return seen[get_ident()]
