"""What augmented drawings say of each place, by what is near it: a second opinion at less noise.

The posterior mean of `finetune.predict.bank` weighs whole images, and at little noise no image of
thousands is like the one that is asked about.  But near any one place many are.  So each place p
has weights of its own, by a window around it:

    w_i(p) = softmax_i( -sum_q g(q - p) (x_t - (1 - t) a_i)_q^2 / (2 t^2) ),   g Gaussian,

and E[x | x_t] is there the mean of the images by those.  What patches alone can tell is what
convolutional networks tend to say (Kamb and Ganguli, "An analytic theory of creativity in
convolutional diffusion models" (2024)); this has nothing to learn, and errs for other reasons.

The less noise, the less one has to see to tell images apart: windows are as wide as noise is over
signal, t / (1 - t).
"""

from __future__ import annotations

import torch
from torch import Tensor

_WIDTH_PX = 5.5  # deviation of a window at as much noise as signal
_BLOCK = 2  # pixels along each axis that share their weights
# What is computed of so many images stays in a core's cache; and so many questions are put to them
# while they are there.
_AT_ONCE, _TOGETHER = 256, 4


def in_columns(images: Tensor) -> Tensor:
    """Images (n, 784) as `windowed_mean` wants them, (28, 28, n): sums over them are quick."""
    size = int(images.shape[1] ** 0.5)
    return images.T.contiguous().view(size, size, -1)


def windowed_mean(columns: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """E[x | x_t] of each pixel, by what is near it, and how many images it rests on.

    Args:
        columns: images, (28, 28, n).
        x_t: (B, 1, 28, 28).
        t: (B, 1, 1, 1), above 0 and below 1.

    Returns:
        The mean, and the effective number of images 1 / sum w_i^2, from 1 to n, both
        (B, 1, 28, 28).
    """
    parts = zip(x_t[:, 0].split(_TOGETHER), t.flatten().split(_TOGETHER), strict=True)
    means, effective = zip(*(_means(columns, y, times) for y, times in parts), strict=True)
    return torch.cat(means)[:, None], torch.cat(effective)[:, None]


def _means(columns: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Means and effective numbers, both (B, 28, 28), for x_t = ``y`` (B, 28, 28) and t (B,)."""
    weights = _agreements(columns, y, t)
    weights = weights.sub_(weights.detach().amax(-1, keepdim=True)).exp_()
    total = weights.sum(-1)
    effective = (total / torch.linalg.vector_norm(weights, dim=-1)).square()
    n_blocks = total.shape[-1]
    blocks = columns.view(n_blocks, _BLOCK, n_blocks, _BLOCK, -1)
    # One row of pixels after the other: a block's rows do not lie beside each other.
    sums = [
        torch.stack([row @ weights[:, i].permute(1, 2, 0) for row in block])
        for i, block in enumerate(blocks)
    ]
    found = torch.stack(sums).permute(4, 0, 1, 2, 3) / total[:, :, None, :, None]
    spread = effective[:, :, None, :, None].expand(-1, -1, _BLOCK, -1, _BLOCK)
    return found.reshape(y.shape), spread.reshape(y.shape)


def _agreements(columns: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Logarithms of the weights (B, blocks, blocks, n), as of `_means`, up to a constant.

    |x_t|^2 is the same for all images and falls out of the softmax.  What is left of a row of
    pixels is one product with the images' values and their squares.
    """
    b, size, _ = y.shape
    # A window is a product of what its rows and its columns count for.
    width = _WIDTH_PX * t / (1 - t)
    pixels = torch.arange(size, device=y.device, dtype=y.dtype)
    middles = pixels[::_BLOCK] + (_BLOCK - 1) / 2
    counts = (-0.5 * ((middles[:, None] - pixels) / width[:, None, None]).square()).exp()
    counts = counts * ((1 - t).sqrt() / t)[:, None, None]  # (B, blocks, 28)
    of_values = counts * y.transpose(0, 1)[:, :, None]  # (28, B, blocks, 28)
    of_squares = (counts * (-0.5 * (1 - t))[:, None, None]).expand_as(of_values)
    factors = torch.cat([of_values, of_squares], -1).view(size, -1, 2 * size)
    found = columns.new_empty(b, len(middles), len(middles), columns.shape[-1])
    for i, images in enumerate(columns.split(_AT_ONCE, -1)):
        rows = factors @ torch.cat([images, images.square()], 1)
        agreements = counts @ rows.view(size, b, -1).transpose(0, 1)
        found[..., i * _AT_ONCE : (i + 1) * _AT_ONCE] = agreements.view(*found.shape[:3], -1)
    return found
