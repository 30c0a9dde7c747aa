"""A velocity network that answers with a posterior over each pixel's grey level.

With x_t = (1 - t) x + t e the velocity of least error is (x_t - E[x | x_t]) / t.  A network that
gives it as a number must learn to divide by t, and the grey levels besides.  Here it only says
which level each pixel probably has, given all the others; what the pixel itself tells is
Bayes' rule, exact at any t.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from ..flow import interpolate
from ..model.fused_unet import FusedUNet, can_fuse
from .bank import ImageBank
from .head import LevelHead
from .levels import GreyLevels

Features = Callable[[Tensor, Tensor, Tensor], Tensor]
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
        n_hidden, generator: of its `LevelHead`.
        bank: mixed into answers, and into the targets of training.
        answer_dtype: of the network's products on a CPU; the one that it was trained in is best.
    """

    means: Tensor  # (K, 28, 28) or (K, 1, 1), as the two below
    variances: Tensor
    log_prior: Tensor

    def __init__(
        self,
        network: nn.Module,
        levels: GreyLevels,
        label: int,
        n_hidden: int,
        generator: torch.Generator | None = None,
        bank: ImageBank | None = None,
        answer_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network = network
        conv: Any = network.conv_out
        device = conv.weight.device
        self.head = LevelHead(conv.in_channels, len(levels.means), n_hidden, device, generator)
        self.register_buffer("means", levels.means)
        self.register_buffer("variances", levels.variances)
        self.register_buffer("log_prior", levels.log_prior)
        self.label = label
        self.n_channels_img = network.n_channels_img
        self.n_classes = network.n_classes
        self.bank = bank
        self.answer_dtype = answer_dtype
        self.fuses = device.type == "cpu" and can_fuse(network)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """The velocity at ``x_t`` (B, 1, 28, 28) for times t (B, 1, 1, 1) and labels c (B,)."""
        learnt = c == self.label
        if not learnt.any():
            velocity: Tensor = self.network(x_t, t, c)
            return velocity
        t = t.to(x_t)
        x = self.mean(self.head(self._features(x_t, t, c)).to(x_t.dtype), x_t, t)
        if self.bank is not None:
            x = self.bank(x, x_t, t)
        velocity = torch.where(t < _LEAST_T, -x, (x_t - x) / t.clamp(min=_LEAST_T))
        if learnt.all():
            return velocity
        return torch.where(learnt[:, None, None, None], velocity, self.network(x_t, t, c))

    def of_levels(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What each pixel itself tells about its levels, both (B, K, 28, 28).

        Returns:
            The logarithm of a level's probability without logits, up to a constant for each
            pixel, and the pixel's mean value if it has that level.  A level N(m, s^2) gives x_t
            the density N((1 - t) m, (1 - t)^2 s^2 + t^2).
        """
        variance = ((1 - t).square() * self.variances + t.square()).clamp(min=_LEAST_T**2)
        # A pass over all levels of all pixels takes longer than anything else here: few of them.
        error = torch.addcmul(x_t, self.means, t - 1)
        prior = self.log_prior
        if len(self.variances) > 1:  # else it takes no side
            prior = prior - 0.5 * variance.log()
        gain = (1 - t) * self.variances / variance
        log_probability = torch.addcmul(prior, error, error * (-0.5 / variance))
        return log_probability, torch.addcmul(self.means, error, gain)

    def mean(self, logits: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x | x_t], (B, 1, 28, 28): the mean of each level's own, by their probabilities."""
        log_probability, means = self.of_levels(x_t, t)
        return ((logits + log_probability).softmax(1) * means).sum(1, keepdim=True)

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
        with torch.no_grad():
            log_probability, means = self.of_levels(x_t, t)
            target = x if self.bank is None else self.bank.target(x, x_t, t)
        logits = self.head(features(x_t, t, c))
        t = t.clamp(min=_LEAST_T_IN_TRAINING)
        return _level_losses(logits, log_probability, means, labels, target, t)

    def _features(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        if self.fuses and x_t.device.type == "cpu" and self.means.dtype == torch.float32:
            return FusedUNet(self.network, self.answer_dtype).features(x_t, t, c)
        return last_features(self.network, x_t, t, c)


class _LevelLosses(torch.autograd.Function):
    """Flow loss and cross entropy of level logits z, for p = softmax(z + log probability).

    With x the image, m a level's mean and m' = sum of p m, the losses of one image of n pixels are
    the means over pixels of ((x - m') / t)^2 and of -log p(label).  Their gradients by z are

        (2 / n) p (m - m') (m' - x) / t^2   and   (p - 1 where it is the label) / n.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        log_probability: Tensor,
        means: Tensor,
        labels: Tensor,
        x: Tensor,
        t: Tensor,
    ) -> tuple[Tensor, Tensor]:
        labels = labels[:, None]
        log_p = (logits + log_probability).log_softmax(1)
        entropy = -log_p.gather(1, labels)
        p = log_p.exp_()
        mean = (p * means).sum(1, keepdim=True)
        error = (mean - x) / t  # velocity - (e - x) is minus this, exactly
        ctx.save_for_backward(p, means, mean, error, labels, t)
        return error.square().flatten(1).mean(1), entropy.flatten(1).mean(1)

    @staticmethod
    def backward(ctx: Any, d_losses: Tensor, d_entropies: Tensor) -> Any:
        p, means, mean, error, labels, t = ctx.saved_tensors
        n = mean[0].numel()
        d_mean = d_losses[:, None, None, None] * (2 / n) * error / t
        d_entropy = d_entropies[:, None, None, None] / n
        d_logits = torch.addcmul(d_entropy, means - mean, d_mean).mul_(p)
        d_logits.scatter_add_(1, labels, -d_entropy.expand_as(mean))
        return d_logits, None, None, None, None, None


_level_losses: Callable[..., tuple[Tensor, Tensor]] = _LevelLosses.apply


def last_features(network: nn.Module, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """What the network's last convolution is given, (B, C, 28, 28), whatever its forward does."""
    seen: list[Tensor] = []
    conv: Any = network.conv_out
    caller = get_ident()

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if get_ident() == caller:  # another thread may be in the same network
            seen.append(inputs[0])

    hook = conv.register_forward_pre_hook(look)
    try:
        network(x_t, t, c)
    finally:
        hook.remove()
    return seen[0]
