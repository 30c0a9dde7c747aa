"""The grey levels that a pixel can have: what resizing makes of ink and paper.

A pixel of a plainly resized bitmap looks at up to 2x2 bits, so it has one of 16 values, and
which ones depends on where it lies; after other resizes it is ink, paper or something between.
Either way a grey value is a mixture of few narrow normals, and what noise leaves of it has a
posterior that can be written down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_BITS = 2  # along each axis: pixels that look at more have too many values to list
_N_BINS = 16  # of values that can't be listed: paper, ink and equal steps between
_EDGE = 1e-3  # values this near to 0 and 1 are paper and ink
_LEAST_VARIANCE = 1e-8
_LEAST_SHARE = 1e-5  # of pixels at a level; keeps its logarithm finite
_PERIOD = 4  # plain resizing from 105 to 28 looks at bits alike every so many pixels


@dataclass(frozen=True)
class GreyLevels:
    """A pixel's grey value is N(mean, variance) of one of K levels; the prior says how often.

    Each (K, H, W), or (K, 1, 1) in order of grey where all pixels are alike; variances (1, 1, 1)
    where all levels are alike, too.
    """

    means: Tensor
    variances: Tensor
    log_prior: Tensor

    def nearest(self, x: Tensor) -> Tensor:
        """The likeliest level of each pixel of ``x`` (n, 1, H, W), by itself: (n, H, W) long."""
        return _nearest(x, self.means, self.variances)


def grey_levels(drawings: Tensor, samples: Tensor, operator: Tensor | None) -> GreyLevels:
    """The levels of drawings like these.

    Args:
        drawings: real ones, (n, 1, 28, 28) in [0, 1].
        samples: many augmented ones, (N, 1, 28, 28); they tell how common each level is.
        operator: the matrix (28, m) that made the drawings out of bitmaps, if it is known.
    """
    if operator is not None and int((operator != 0).sum(1).max()) <= _MOST_BITS:
        means = _listed(operator)
        # What the list leaves unexplained, such as a file format's rounding, widens every level.
        floor = means.new_full((1, 1, 1), _LEAST_VARIANCE)
        residual = drawings - _values(means, _nearest(drawings, means, floor))
        variances = floor + residual.square().mean()
    else:
        means, variances = _binned(torch.cat([drawings, samples]).flatten())
    labels = _nearest(samples, means, variances)
    shares = F.one_hot(labels, len(means)).float().mean(0).permute(2, 0, 1)  # (K, 28, 28)
    if len(means[0].flatten()) == 1:
        shares = shares.mean((1, 2), keepdim=True)
    else:
        k, h, w = shares.shape
        tiles = (k, h // _PERIOD, _PERIOD, w // _PERIOD, _PERIOD)
        shares = shares.view(tiles).mean((1, 3), keepdim=True).expand(tiles).reshape(k, h, w)
    return GreyLevels(means, variances, torch.log(shares + _LEAST_SHARE))


def _listed(operator: Tensor) -> Tensor:
    """Every value that each pixel of ``D bits D^T`` can have, (K, H, W).

    A level is the same ink in the same of a pixel's bits everywhere, whichever grey that makes:
    so it looks alike to a convolution.
    """
    n = int((operator != 0).sum(1).max())
    bits = operator.topk(n, dim=1).indices.sort(1).values  # from left to right
    weights = operator.gather(1, bits)  # (28, n)
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * (n * n)).view(-1, n, n)
    return torch.einsum("ia,jb,kab->kij", weights, weights, patterns.to(weights))


def _binned(values: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances, (K, 1, 1), of ``values`` in bins: paper, equal steps, ink."""
    steps = torch.linspace(_EDGE, 1 - _EDGE, _N_BINS - 1, device=values.device)
    bins = torch.bucketize(values, steps)
    centres = torch.cat([values.new_zeros(1), (steps[1:] + steps[:-1]) / 2, values.new_ones(1)])
    counts = bins.bincount(minlength=_N_BINS).to(values)
    means = torch.zeros_like(counts).index_add(0, bins, values) / counts.clamp(min=1)
    means = torch.where(counts > 0, means, centres)
    squares = torch.zeros_like(counts).index_add(0, bins, (values - means[bins]).square())
    variances = squares / counts.clamp(min=1) + _LEAST_VARIANCE
    return means[:, None, None], variances[:, None, None]


def _nearest(x: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    # One level after the other: `argmin` over all at once takes many times as long on a CPU.
    x = x[:, 0]
    labels = torch.zeros(x.shape, dtype=torch.long, device=x.device)
    best = torch.full_like(x, math.inf)
    for k, (mean, variance) in enumerate(
        zip(means, variances.expand(len(means), -1, -1), strict=True)
    ):
        badness = (x - mean).square() / variance + variance.log()
        labels.masked_fill_(badness < best, k)
        best = torch.minimum(best, badness)
    return labels


def _values(means: Tensor, labels: Tensor) -> Tensor:
    """The mean of each pixel's level, (n, 1, H, W)."""
    every = means.expand(len(means), *labels.shape[1:])
    return every[None].expand(len(labels), -1, -1, -1).gather(1, labels[:, None])
