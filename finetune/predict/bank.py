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

import torch
from torch import Tensor, nn

from ..recipe import Recipe
from .windows import window_blocks, window_columns, windowed_mean

# Below this t one image has nearly all the weight.
_FROM_T = 0.3
# The share of whole images rises with their effective number: half of its limit for 15.
_SHARPNESS = 10
_WINDOWS_TO_T = 0.6  # above, whole images tell more
_ROWS = 64  # of x_t that are compared at once: bounds the memory


class ImageBank(nn.Module):
    """Augmented drawings, and how far an answer or a target moves toward their posterior mean.

    Args:
        images: (n, 1, 28, 28); windows look at the first ``recipe.window_images`` of them.
        recipe: its fields ``bank_limit``, ``target_limit``, ``window_images``, ``window_limit``
            and ``window_px``.
    """

    images: Tensor  # (n, 784)
    columns: Tensor  # of `window_columns`
    blocks: Tensor  # of `window_blocks`

    def __init__(self, images: Tensor, recipe: Recipe) -> None:
        super().__init__()
        self.register_buffer("images", images.flatten(1))
        self.limit = recipe.bank_limit
        self.target_limit = recipe.target_limit
        self.window_limit = recipe.window_limit
        self.window_px = recipe.window_px
        near = self.images[: recipe.window_images]
        self.register_buffer("columns", window_columns(near))
        self.register_buffer("blocks", window_blocks(near))

    def forward(self, mean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``mean``, a network's E[x | x_t] (B, 1, 28, 28), with the images' own mixed in."""
        mean = self._toward_posterior(mean, x_t, t, self.limit)
        near = ((t > _FROM_T) & (t < _WINDOWS_TO_T)).flatten()
        if self.window_limit and self.columns.shape[-1] and near.any():
            own, effective = windowed_mean(
                self.columns, self.blocks, x_t[near], t[near], self.window_px
            )
            mean[near] += self.window_limit * (1 - 1 / effective) * (own - mean[near])
        return mean

    def target(self, x: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """What training at ``x_t`` (B, 1, 28, 28) aims at, for the drawing ``x`` behind it."""
        return self._toward_posterior(x, x_t, t, self.target_limit)

    def _toward_posterior(self, mean: Tensor, x_t: Tensor, t: Tensor, limit: float) -> Tensor:
        mean = mean.clone()
        noisy = (t > _FROM_T).flatten()
        if limit and noisy.any():
            own, effective = posterior_mean(self.images, x_t[noisy], t[noisy])
            mean[noisy] += limit * (1 - 1 / effective) ** _SHARPNESS * (own - mean[noisy])
        return mean


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
