"""The posterior mean over augmented drawings, mixed into the network's answer and its targets.

If the images a_i were all there are, the image behind x_t = (1 - t) x + t e would be

    E[x | x_t] = sum_i w_i a_i,   w = softmax_i( -|x_t - (1 - t) a_i|^2 / (2 t^2) ).

A network makes other errors than that (it knows more images, but has to learn), so the mean of
both is better than either where several images share the weight; where hundreds do, the images
alone are best.  At less noise one image has all the weight, but near each place many are alike
(`finetune.predict.windows`).

In training, the same mixture is the target: a drawing is one sample of the posterior, and the
posterior mean has the same expectation with less variance (Xu, Tong and Jaakkola, "Stable target
field for reduced variance score estimation in diffusion models" (2023)).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..recipe import Recipe
from .windows import window_columns, windowed_mean

# Below this t one image has nearly all the weight.
_FROM_T = 0.3
# The share of whole images rises with their effective number: half of its limit for 15.
_SHARPNESS = 10
_WINDOWS_FROM_T, _WINDOWS_TO_T = 0.2, 0.6
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
    """Augmented drawings, and how far an answer or a target moves toward their posterior mean.

    Args:
        images: (n, 1, 28, 28); windows look at the first ``recipe.window_images`` of them.
        recipe: its fields ``bank_limit``, ``target_limit``, ``window_images``, ``window_limit``
            and ``window_px``.
    """

    images: Tensor  # (n, 784)

    def __init__(self, images: Tensor, recipe: Recipe) -> None:
        super().__init__()
        self.register_buffer("images", images.flatten(1))
        self.limit = recipe.bank_limit
        self.target_limit = recipe.target_limit
        self.window_images = recipe.window_images
        self.window_limit = recipe.window_limit
        self.window_px = recipe.window_px
        self._columns: Tensor | None = None  # of the images under windows, once they are needed

    def forward(self, mean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``mean``, a network's E[x | x_t] (B, 1, 28, 28), with the images' own mixed in."""
        mean = self._toward_posterior(mean, x_t, t, self.limit)
        seen = has_windows(t).flatten()
        if self.window_limit and self.window_images and seen.any():
            near, effective = self.near(x_t[seen], t[seen])
            mean[seen] = self.mixed_near(mean[seen], near, effective, t[seen])
        return mean

    def target(self, x: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """What training at ``x_t`` (B, 1, 28, 28) aims at, for the drawing ``x`` behind it."""
        return self._toward_posterior(x, x_t, t, self.target_limit)

    def mixed(
        self, mean: Tensor, own: Tensor, effective: Tensor, t: Tensor, limit: float
    ) -> Tensor:
        """``mean`` moved toward ``own``, the `posterior_mean` of ``effective`` images."""
        share = limit * (1 - 1 / effective) ** _SHARPNESS
        return mean + (t > _FROM_T) * share * (own - mean)

    def near(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What `windowed_mean` says, by the images under windows."""
        if self._columns is None:
            with torch.inference_mode(False):
                self._columns = window_columns(self.images[: self.window_images])
        return windowed_mean(self._columns, x_t, t, self.window_px)

    def mixed_near(self, mean: Tensor, near: Tensor, effective: Tensor, t: Tensor) -> Tensor:
        """``mean`` moved toward ``near``, which `near` gave with ``effective``."""
        share = self.window_limit * (1 - 1 / effective)
        return mean + has_windows(t) * share * (near - mean)

    def _toward_posterior(self, mean: Tensor, x_t: Tensor, t: Tensor, limit: float) -> Tensor:
        mean = mean.clone()
        noisy = (t > _FROM_T).flatten()
        if limit and noisy.any():
            own, effective = posterior_mean(self.images, x_t[noisy], t[noisy])
            mean[noisy] = self.mixed(mean[noisy], own, effective, t[noisy], limit)
        return mean

    # Whatever changes the images must not leave the old columns behind.

    def _apply(self, fn: Any, recurse: bool = True) -> ImageBank:
        self._columns = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._columns = None
        super()._load_from_state_dict(*args, **kwargs)


def has_windows(t: Tensor) -> Tensor:
    """Whether answers at times t look at windows."""
    return (t > _WINDOWS_FROM_T) & (t < _WINDOWS_TO_T)
