"""The posterior mean over augmented drawings a_i, mixed into the answer and into its targets:

    E[x | x_t] = sum_i w_i a_i,   w = softmax_i( -|x_t - (1 - t) a_i|^2 / (2 t^2) ).

Xu, Tong and Jaakkola, "Stable target field for reduced variance score estimation in diffusion
models" (2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..recipe import Recipe
from .windows import window_layouts, windowed_mean

# Below this t a single image has nearly all the weight.
_FROM_T = 0.3
# The share of whole images rises with their effective number, to half of its limit at 15.
_SHARPNESS = 10
_WINDOWS_TO_T = 0.6  # above this t, whole images predict better
_ROWS = 64  # images of x_t compared at once, to bound the memory


class ImageBank(nn.Module):
    """Augmented drawings whose posterior mean is mixed into answers and targets.

    Args:
        images: (n, 1, 28, 28); windows use the first ``recipe.window_images`` of them.
        recipe: its fields ``bank_limit``, ``target_limit``, ``window_images``, ``window_limit``
            and ``window_px``.
    """

    images: Tensor  # (n, 784)
    squares: Tensor  # (n,), their squared norms
    columns: Tensor  # of the images for windows, from `window_layouts`
    blocks: Tensor

    def __init__(self, images: Tensor, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("squares", self.images.square().sum(1))
        columns, blocks = window_layouts(self.images[: recipe.window_images])
        self.register_buffer("columns", columns)
        self.register_buffer("blocks", blocks)

    def forward(self, mean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mix the images' posterior mean into ``mean``, a network's E[x | x_t] (B, 1, 28, 28)."""
        parts = zip(mean.split(_ROWS), x_t.split(_ROWS), t.split(_ROWS), strict=True)
        return torch.cat([self._mixed(*part) for part in parts])

    def _mixed(self, mean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        r, mean = self.recipe, self.toward_posterior(mean, x_t, t, self.recipe.bank_limit)
        near = ((t > _FROM_T) & (t < _WINDOWS_TO_T)).flatten()
        if r.window_limit and r.window_images and near.any():
            own, n = windowed_mean(self.columns, self.blocks, x_t[near], t[near], r.window_px)
            mean[near] += r.window_limit * (1 - 1 / n) * (own - mean[near])
        return mean

    def toward_posterior(self, mean: Tensor, x_t: Tensor, t: Tensor, limit: float) -> Tensor:
        """Move ``mean`` toward the images' posterior mean, by nearly ``limit`` at much noise."""
        mean = mean.clone()
        noisy = (t > _FROM_T).flatten()
        if limit and noisy.any():
            own, n = posterior_mean(self.images, self.squares, x_t[noisy], t[noisy])
            mean[noisy] += limit * (1 - 1 / n) ** _SHARPNESS * (own - mean[noisy])
        return mean


def posterior_mean(
    images: Tensor, squares: Tensor, x_t: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """E[x | x_t] over ``images`` (n, 784), and the effective number of images in it.

    Args:
        squares: squared norms of the images, (n,).
        x_t: (B, 1, 28, 28).
        t: (B, 1, 1, 1), above 0.

    Returns:
        The mean (B, 1, 28, 28), and the effective number of images 1 / sum w_i^2 (B, 1, 1, 1)
        (Kish, Survey Sampling (1965), section 11.7), from 1 to n.
    """
    # |x_t|^2 is left out: it is the same for all images and cancels in the softmax.
    y, times = x_t.flatten(1), t.flatten()
    factor = (1 - times) / times.square()
    exponent = (factor[:, None] * y) @ images.T
    exponent.addr_(factor * (1 - times), squares, alpha=-0.5)
    weights = exponent.softmax(1)
    effective = 1 / weights.norm(dim=1).square()
    return (weights @ images).view_as(x_t), effective[:, None, None, None]
