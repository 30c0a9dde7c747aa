"""A velocity network that answers with a posterior over each pixel's grey level.

With x_t = (1 - t) x + t e the velocity of least error is (x_t - E[x | x_t]) / t.  A network that
gives it as a number must learn to divide by t, and the grey levels besides.  Here it only says
which level each pixel probably has, given all the others; what the pixel itself tells is
Bayes' rule, exact at any t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bank import ImageBank
from .flow import interpolate
from .fused import FusedUNet, can_fuse
from .levels import GreyLevels

Features = Callable[[Tensor, Tensor, Tensor], Tensor]
# Shifts over which the levels' logits are averaged.  Strides make the network see a shifted
# image a little differently; at low noise there is nothing to gain from that.
_SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
_SHIFT_FROM_T = 0.25
# Below this t an error of the drawing would be multiplied out of all proportion in training;
# at t = 0 itself the noise can't be seen, and its mean, 0, is the best guess.
_LEAST_T_IN_TRAINING = 0.01
_LEAST_T = 1e-6


class LevelPosterior(nn.Module):
    """The course's network with a head for the levels of its newest class.

    Args:
        network: its last layer is a convolution called ``conv_out``.
        levels: of the pixels of the new class's drawings.
        label: the new class; others get the network's own velocity.
        views: over how many shifts of at most one pixel logits are averaged outside of
            training, 1 to 5.
    """

    means: Tensor  # (K, 28, 28) or (K, 1, 1), as the two below
    variances: Tensor
    log_prior: Tensor

    def __init__(self, network: nn.Module, levels: GreyLevels, label: int, views: int) -> None:
        super().__init__()
        self.network = network
        conv: Any = network.conv_out
        # Without its own initialisation, which would draw from the process's random numbers.
        self.head = nn.utils.skip_init(
            nn.Conv2d, conv.in_channels, len(levels.means), 3, padding=1, device=conv.weight.device
        )
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("means", levels.means)
        self.register_buffer("variances", levels.variances)
        self.register_buffer("log_prior", levels.log_prior)
        self.label = label
        self.n_channels_img = network.n_channels_img
        self.n_classes = network.n_classes
        self.shifts = _SHIFTS[:views]
        self.bank: ImageBank | None = None  # a second opinion outside of training
        self.fuses = conv.weight.device.type == "cpu" and can_fuse(network)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """The velocity at ``x_t`` (B, 1, 28, 28) for times t (B, 1, 1, 1) and labels c (B,)."""
        learnt = c == self.label
        if not learnt.any():
            velocity: Tensor = self.network(x_t, t, c)
            return velocity
        t = t.to(x_t)
        x = self.mean(self.log_posterior(self._shifted_logits(x_t, t, c), x_t, t), x_t, t)
        if self.bank is not None:
            x = self.bank(x, x_t, t)
        velocity = torch.where(t < _LEAST_T, -x, (x_t - x) / t.clamp(min=_LEAST_T))
        if learnt.all():
            return velocity
        return torch.where(learnt[:, None, None, None], velocity, self.network(x_t, t, c))

    def log_posterior(self, logits: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Log-probability of each pixel's levels up to a constant, (B, K, 28, 28).

        A level N(m, s^2) gives x_t the density N((1 - t) m, (1 - t)^2 s^2 + t^2).
        """
        variance = ((1 - t).square() * self.variances + t.square()).clamp(min=_LEAST_T**2)
        error = x_t - (1 - t) * self.means
        return logits + self.log_prior - 0.5 * (error.square() / variance + variance.log())

    def mean(self, log_posterior: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x | x_t], (B, 1, 28, 28): the mean of each level's own, by their probabilities."""
        variance = ((1 - t).square() * self.variances + t.square()).clamp(min=_LEAST_T**2)
        gain = (1 - t) * self.variances / variance
        means = self.means + gain * (x_t - (1 - t) * self.means)
        return (log_posterior.softmax(1) * means).sum(1, keepdim=True)

    def losses(
        self, features: Features, labels: Tensor, x: Tensor, e: Tensor, t: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What training lowers, for images x (B, 1, 28, 28) with noises e, times t, labels c.

        Args:
            features: what ``conv_out`` is given, as the network computes it in training.
            labels: the levels of the images' pixels, (B, 28, 28).

        Returns:
            The flow loss of each image, with less weight where t is nearly 0, and the cross
            entropy of its pixels' levels, each (B,).
        """
        x_t = interpolate(x, e, t)
        log_posterior = self.log_posterior(self.logits(features(x_t, t, c)), x_t, t)
        # velocity - (e - x) is this, exactly
        error = (x - self.mean(log_posterior, x_t, t)) / t.clamp(min=_LEAST_T_IN_TRAINING)
        entropy = F.cross_entropy(log_posterior, labels, reduction="none")
        return error.square().flatten(1).mean(1), entropy.flatten(1).mean(1)

    def logits(self, features: Tensor) -> Tensor:
        """(B, K, 28, 28) float32 from features of any float type."""
        head, bias = self.head, self.head.bias
        assert bias is not None
        weight = head.weight.to(features.dtype)
        return F.conv2d(features, weight, bias.to(features.dtype), padding=head.padding).float()

    def _shifted_logits(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        logits = self.logits(self._features(x_t, t, c))
        noisy = (t > _SHIFT_FROM_T).flatten()
        if len(self.shifts) == 1 or not noisy.any():
            return logits.to(x_t.dtype)
        some = [a[noisy] for a in (x_t, t, c)]
        total = logits[noisy]
        for shift in self.shifts[1:]:
            back = (-shift[0], -shift[1])
            features = self._features(some[0].roll(shift, (2, 3)), some[1], some[2])
            total = total + self.logits(features).roll(back, (2, 3))
        logits[noisy] = total / len(self.shifts)
        return logits.to(x_t.dtype)

    def _features(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        if self.fuses and x_t.device.type == "cpu" and self.head.weight.dtype == torch.float32:
            return FusedUNet(self.network, torch.float32).features(x_t, t, c)
        return last_features(self.network, x_t, t, c)


def last_features(network: nn.Module, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """What the network's last convolution is given, (B, C, 28, 28), whatever its forward does."""
    seen: list[Tensor] = []
    conv: Any = network.conv_out
    hook = conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        network(x_t, t, c)
    finally:
        hook.remove()
    return seen[0]
