"""The posterior mean over augmented drawings, place by place.

`finetune.predict.bank` weighs whole images, and at little noise no image of thousands is like the
noisy one.  But near any one place many are.  So each place p weighs the images by a window around
it,

    w_i(p) = softmax_i( -sum_q g(q - p) (x_t - (1 - t) a_i)_q^2 / (2 t^2) ),   g Gaussian,

and E[x | x_t] at p is the mean of the images by those weights.  Convolutional networks answer much
like this (Kamb and Ganguli, "An analytic theory of creativity in convolutional diffusion models"
(2024)), but this has nothing to learn and so makes other errors.

Less noise needs a smaller window to tell images apart: its width is noise over signal,
t / (1 - t), times ``width_px``.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Pixels along each axis that share their weights: fewer where windows are narrow.
_FINE_BLOCK, _COARSE_BLOCK = 2, 4
_COARSE_FROM_PX = 2.6  # deviation of a window
# Images and questions that are computed together: what they need fits a core's cache.
_IMAGES_AT_ONCE, _QUESTIONS_AT_ONCE = 256, 4


def window_columns(images: Tensor) -> Tensor:
    """Images (n, 784) and their squares as `windowed_mean` reads them, (28, 56, n).

    Of each row of pixels first the values, then the squares.
    """
    size = int(images.shape[1] ** 0.5)
    columns = images.T.reshape(size, size, -1)
    return torch.cat([columns, columns.square()], 1).contiguous()


def windowed_mean(
    columns: Tensor, x_t: Tensor, t: Tensor, width_px: float
) -> tuple[Tensor, Tensor]:
    """E[x | x_t] of each pixel, by the images' pixels near it, and how many images it rests on.

    Args:
        columns: of `window_columns`, (28, 56, n).
        x_t: (B, 1, 28, 28).
        t: (B, 1, 1, 1), above 0 and below 1.
        width_px: deviation of the window where there is as much noise as signal, pixels.

    Returns:
        The mean, and the effective number of images 1 / sum w_i^2 in [1, n], both (B, 1, 28, 28).
    """
    widths = width_px * t.flatten() / (1 - t.flatten())
    means, effective = torch.empty_like(x_t), torch.empty_like(x_t)
    coarse = widths >= _COARSE_FROM_PX
    for block, chosen in ((_FINE_BLOCK, ~coarse), (_COARSE_BLOCK, coarse)):
        for rows in chosen.nonzero()[:, 0].split(_QUESTIONS_AT_ONCE):
            if len(rows):
                found = _block_means(columns, x_t[rows, 0], t[rows, 0, 0, 0], widths[rows], block)
                means[rows, 0], effective[rows, 0] = found
    return means, effective


def _block_means(
    columns: Tensor, y: Tensor, t: Tensor, widths: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """Means and effective numbers, both (B, 28, 28), for x_t = ``y`` (B, 28, 28) and t (B,)."""
    weights = _log_weights(columns, y, t, widths, block)  # (B, blocks, blocks, n)
    weights = weights.sub_(weights.detach().amax(-1, keepdim=True)).exp_()
    total = weights.sum(-1)
    effective = (total / torch.linalg.vector_norm(weights, dim=-1)).square()
    b, size, n = len(y), y.shape[1], total.shape[1]
    # Rows of blocks one after the other, (blocks, block, 28 / blocks per row, n) @ (n, B).
    values = columns[:, :size].view(n, block, n, block, -1)
    sums = [
        torch.stack([row @ weights[:, i].permute(1, 2, 0) for row in rows])
        for i, rows in enumerate(values)
    ]
    found = torch.stack(sums).permute(4, 0, 1, 2, 3) / total[:, :, None, :, None]
    spread = effective[:, :, None, :, None].expand(-1, -1, block, -1, block)
    return found.reshape(b, size, size), spread.reshape(b, size, size)


def _log_weights(columns: Tensor, y: Tensor, t: Tensor, widths: Tensor, block: int) -> Tensor:
    """Logarithms of the weights up to a constant, (B, blocks, blocks, n).

    |x_t|^2 is the same for all images and falls out of the softmax.  What is left of a row of
    pixels is one product with the images' values and squares.
    """
    b, size, _ = y.shape
    # A window is the product of a factor for its rows and one for its columns.
    pixels = torch.arange(size, device=y.device, dtype=y.dtype)
    middles = pixels[::block] + (block - 1) / 2
    gauss = (-0.5 * ((middles[:, None] - pixels) / widths[:, None, None]).square()).exp()
    gauss = gauss * ((1 - t).sqrt() / t)[:, None, None]  # (B, blocks, 28)
    of_values = gauss * y.transpose(0, 1)[:, :, None]  # (28, B, blocks, 28)
    of_squares = (gauss * (-0.5 * (1 - t))[:, None, None]).expand_as(of_values)
    factors = torch.cat([of_values, of_squares], -1).view(size, -1, 2 * size)
    found = columns.new_empty(b, len(middles), len(middles), columns.shape[-1])
    for i, images in enumerate(columns.split(_IMAGES_AT_ONCE, -1)):
        rows = (factors @ images).view(size, b, -1).transpose(0, 1)
        part = (gauss @ rows).view(*found.shape[:3], -1)
        found[..., i * _IMAGES_AT_ONCE : (i + 1) * _IMAGES_AT_ONCE] = part
    return found
