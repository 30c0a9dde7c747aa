"""A second opinion where there is noise: the posterior mean over many augmented drawings.

If these images a_i were all there are, the image behind x_t = (1 - t) x + t e would be

    E[x | x_t] = sum_i w_i a_i,   w = softmax_i( -|x_t - (1 - t) a_i|^2 / (2 t^2) ).

That errs for other reasons than a network does (it knows few images, but has nothing to learn),
so a mean of both is better than either, where enough images have a say; and where hundreds have,
the images alone are.  At less noise none is like the whole drawing, but near each place many are
(`finetune.predict.windows`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .windows import in_columns, windowed_mean

# Images, of one network; the time that more would take to draw is better spent on steps.
BANK_SIZE = 32_768
POOLED_SIZE = 65_536  # at most, of several
# Below it one image has nearly all the weight, and no say.
_FROM_T = 0.3
# The share rises with the number of images that have a say: 0 for one, half of its limit for 15.
_SHARPNESS = 10
# Where windows have a say, and how much of the limit, if many images have one.  To look through
# them takes a hundred times longer than to look at whole images, so fewer are looked at.
_WINDOWS_FROM_T, _WINDOWS_TO_T = 0.18, 0.65
_WINDOWS_SHARE = 0.4
_WINDOWED = 8192
_ROWS = 64  # of x_t that are compared at once: bounds the memory


def posterior_mean(images: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """E[x | x_t] over ``images`` (n, 784), and how many of them it rests on.

    Args:
        x_t: (B, 1, 28, 28).
        t: (B, 1, 1, 1), above 0.

    Returns:
        The mean (B, 1, 28, 28), and the effective number of images 1 / sum w_i^2 (B, 1, 1, 1)
        (Kish, Survey Sampling (1965), section 11.7), from 1 to n.
    """
    squares = images.norm(dim=1).square()
    means, effective = [], []
    for y, times in zip(x_t.flatten(1).split(_ROWS), t.flatten().split(_ROWS), strict=True):
        # |x_t|^2 is the same for all images and falls out of the softmax.
        factor = (1 - times) / times.square()
        exponent = (factor[:, None] * y) @ images.T
        exponent.addr_(factor * (1 - times), squares, alpha=-0.5)
        weights = exponent.softmax(1)
        means.append(weights @ images)
        effective.append(1 / weights.norm(dim=1).square())
    return torch.cat(means).view_as(x_t), torch.cat(effective)[:, None, None, None]


class ImageBank(nn.Module):
    """Images (n, 1, 28, 28) and how much their posterior mean counts, at most (``limit``)."""

    images: Tensor  # (n, 784)
    columns: Tensor | None  # of some of them, from the first time on that windows are asked

    def __init__(self, images: Tensor, limit: float) -> None:
        super().__init__()
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("columns", None, persistent=False)
        self.limit = limit

    def forward(self, mean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``mean``, a network's E[x | x_t] (B, 1, 28, 28), with the images' own mixed in."""
        mean = mean.clone()
        noisy = _has_say(t).flatten()
        if noisy.any():
            own, effective = posterior_mean(self.images, x_t[noisy], t[noisy])
            mean[noisy] = self.mixed(mean[noisy], own, effective, t[noisy])
        seen = _has_windows(t).flatten()
        if seen.any():
            near, effective = self.near(x_t[seen], t[seen])
            mean[seen] = self.mixed_near(mean[seen], near, effective, t[seen])
        return mean

    def corrected(self, velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """A network's ``velocity`` (B, 1, 28, 28) with what the images say mixed in."""
        mean = x_t - t * velocity
        corrected: Tensor = self(mean, x_t, t)
        # Where images say nothing the difference is 0, whatever t.
        return velocity + (mean - corrected) / t.clamp(min=_WINDOWS_FROM_T)

    def mixed(self, mean: Tensor, own: Tensor, effective: Tensor, t: Tensor) -> Tensor:
        """``mean`` with what `posterior_mean` says, ``own`` and ``effective``, mixed in."""
        share = self.limit * (1 - 1 / effective) ** _SHARPNESS
        return mean + _has_say(t) * share * (own - mean)

    def near(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What `windowed_mean` says of some of the images."""
        if self.columns is None:  # a bank that goes into a pool is never asked
            with torch.inference_mode(False):
                self.columns = in_columns(self.images[:_WINDOWED])
        return windowed_mean(self.columns, x_t, t)

    def mixed_near(self, mean: Tensor, near: Tensor, effective: Tensor, t: Tensor) -> Tensor:
        """``mean`` with what `near` says, ``near`` and ``effective``, mixed in."""
        share = self.limit * _WINDOWS_SHARE * (1 - 1 / effective)
        return mean + _has_windows(t) * share * (near - mean)


def _has_say(t: Tensor) -> Tensor:
    """Whether whole images have a say at t."""
    return t > _FROM_T


def _has_windows(t: Tensor) -> Tensor:
    """Whether windows on them have one."""
    return (t > _WINDOWS_FROM_T) & (t < _WINDOWS_TO_T)


def pooled(banks: Sequence[ImageBank]) -> ImageBank:
    """One bank of what ``banks`` of one limit hold, in equal parts, up to `POOLED_SIZE` images.

    They are empty afterwards: of a hundred megabytes, both places need not have all at once.
    """
    each = POOLED_SIZE // len(banks)
    sizes = [min(each, len(bank.images)) for bank in banks]
    images = banks[0].images.new_empty(sum(sizes), banks[0].images.shape[1])
    for bank, place in zip(banks, images.split(sizes), strict=True):
        place.copy_(bank.images[: len(place)])
        bank.images = images.new_empty(0, images.shape[1])
    return ImageBank(images, banks[0].limit)
