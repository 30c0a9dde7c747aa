"""The posterior mean over augmented drawings, place by place p:

    w_i(p) = softmax_i( -sum_q g(q - p) (x_t - (1 - t) a_i)_q^2 / (2 t^2) ),

with a Gaussian g of deviation ``width_px`` t / (1 - t).  At less noise no image is similar to x_t
as a whole, but many are near any one place.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 4  # pixels along each axis that share their weights


def window_layouts(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (n, 784) in the layouts of `windowed_mean`.

    Returns:
        Columns (28, 56, n): for each column of pixels its values, then their squares.  Blocks of
        pixels: (blocks along x, along y, pixels of a block, n).
    """
    columns = images.view(-1, 28, 28).permute(2, 1, 0)
    blocks = images.view(-1, 28 // _BLOCK, _BLOCK, 28 // _BLOCK, _BLOCK).permute(3, 1, 4, 2, 0)
    return torch.cat([columns, columns.square()], 1), blocks.flatten(2, 3).contiguous()


def windowed_mean(
    columns: Tensor, blocks: Tensor, x_t: Tensor, t: Tensor, width_px: float
) -> tuple[Tensor, Tensor]:
    """E[x | x_t] of each pixel over images near it, and their effective number.

    Args:
        columns, blocks: from `window_layouts`.
        x_t: (B, 1, 28, 28).
        t: (B, 1, 1, 1), above 0 and below 1.
        width_px: deviation of the window in pixels at t = 0.5.

    Returns:
        The mean, and the effective number of images 1 / sum w_i^2 in [1, n], both (B, 1, 28, 28).
    """
    y, t = x_t[:, 0], t[:, 0]
    # A window is the product of a factor for its rows and one for its columns.
    pixels = torch.arange(28, device=y.device, dtype=y.dtype)
    middles = pixels[::_BLOCK, None] + (_BLOCK - 1) / 2
    gauss = (-0.5 * ((middles - pixels) * (1 - t) / (t * width_px)).square()).exp()  # (B, k, 28)
    # |x_t|^2 cancels in the softmax, so one product with the images' values and squares is enough.
    of_values = gauss * y.permute(2, 0, 1)[:, :, None]  # (28, B, k, 28)
    of_squares = (gauss * ((t - 1) / 2)).expand_as(of_values)
    factors = torch.cat([of_values, of_squares], -1) * ((1 - t) / t.square())
    along_y = (factors.flatten(1, 2) @ columns).unflatten(1, factors.shape[1:3])
    weights = torch.einsum("bvs,sbun->bvun", gauss, along_y).softmax(-1)
    means = torch.einsum("bvun,vupn->bvup", weights, blocks)
    means = means.unflatten(-1, (_BLOCK, _BLOCK)).permute(0, 2, 4, 1, 3)
    effective = 1 / weights.square().sum(-1).mT.repeat_interleave(_BLOCK, 1)
    return means.reshape(x_t.shape), effective.repeat_interleave(_BLOCK, 2)[:, None]
