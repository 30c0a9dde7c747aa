"""What augmented drawings say of each place, by what is near it: a second opinion at less noise.

The posterior mean of `finetune.bank` weighs whole images, and at little noise no image of
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
_AT_ONCE = 256  # images: what is computed of them stays in a core's cache


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
    size, n = x_t.shape[-1], columns.shape[-1]
    n_blocks = size // _BLOCK
    blocks = columns.view(n_blocks, _BLOCK, n_blocks, _BLOCK, n)
    means, effective = [], []
    for y, moment in zip(x_t[:, 0], t.flatten().tolist(), strict=True):
        weights = _agreements(columns, y, moment).softmax(-1)[:, None, :, None]
        # One row of blocks after the other: products of all at once leave the cache.
        mean = [torch.linalg.vecdot(w, block) for w, block in zip(weights, blocks, strict=True)]
        counts = [1 / torch.linalg.vecdot(w, w) for w in weights]
        means.append(torch.stack(mean).view(size, size))
        effective.append(torch.stack(counts).expand(-1, _BLOCK, -1, _BLOCK).reshape(size, size))
    return torch.stack(means)[:, None], torch.stack(effective)[:, None]


def _agreements(columns: Tensor, y: Tensor, t: float) -> Tensor:
    """Logarithms of the weights (blocks, blocks, n) for x_t = ``y`` (28, 28), up to a constant.

    |x_t|^2 is the same for all images and falls out of the softmax.
    """
    size = len(y)
    # A window is a product of what its rows and its columns count for.
    width = _WIDTH_PX * t / (1 - t)
    pixels = torch.arange(size, device=y.device, dtype=y.dtype)
    middles = pixels[::_BLOCK] + (_BLOCK - 1) / 2
    counts = (-0.5 * ((middles[:, None] - pixels) / width).square()).exp()
    counts = counts * ((1 - t) ** 0.5 / t)
    found = columns.new_empty(len(middles), len(middles), columns.shape[-1])
    for i, images in enumerate(columns.split(_AT_ONCE, -1)):
        products = torch.add(y[..., None], images, alpha=-0.5 * (1 - t)).mul_(images)
        rows = (counts @ products.flatten(1)).view(len(middles), size, -1)
        found[..., i * _AT_ONCE : (i + 1) * _AT_ONCE] = counts @ rows
    return found
