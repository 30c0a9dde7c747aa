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

from ..augment.resizing import has_few_bits, listed_levels, tap_weights

_N_BINS = 16  # of values that can't be listed: paper, ink and equal steps between
_EDGE = 1e-3  # values this near to 0 and 1 are paper and ink
_LEAST_VARIANCE = 1e-8
_LEAST_SHARE = 1e-5  # of pixels at a level; keeps its logarithm finite
_MOST_PHASES = 9  # ways in which rows look at bits, each with shares of its own


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
    if operator is None and _is_two_valued(drawings) and _is_two_valued(samples):
        operator = torch.eye(drawings.shape[-1]).to(drawings)  # each pixel is one bit
    listed = operator is not None and has_few_bits(operator)
    if operator is not None and listed:
        means = listed_levels(operator)
        # What the list leaves unexplained, such as a file format's rounding, widens every level.
        floor = means.new_full((1, 1, 1), _LEAST_VARIANCE)
        residual = drawings - _values(means, _nearest(drawings, means, floor))
        variances = floor + residual.square().mean()
    else:
        means, variances = _binned(torch.cat([drawings, samples]).flatten())
    labels = _nearest(samples, means, variances)
    shares = F.one_hot(labels, len(means)).float().mean(0).permute(2, 0, 1)  # (K, 28, 28)
    if operator is not None and listed:
        alike = _alike(operator)
        shares = alike @ shares @ alike.T
    else:
        shares = shares.mean((1, 2), keepdim=True)
    return GreyLevels(means, variances, torch.log(shares + _LEAST_SHARE))


def _alike(operator: Tensor) -> Tensor:
    """Which of 28 rows look at bits alike, as a mean over them, (28, 28).

    Plain resizing to 28 has four phases.  Where all phases differ, all rows but the border's are
    taken together: bits beside each other are as often ink wherever a pixel lies between them.
    """
    weights = (tap_weights(operator) * 1000).round()
    kind = torch.unique(weights, dim=0, return_inverse=True)[1]
    if int(kind.max()) >= _MOST_PHASES:
        kind = (weights.sum(1) > 0).long()
    same: Tensor = (kind[:, None] == kind).to(operator)
    same = same / same.sum(1, keepdim=True)
    return same


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


def _is_two_valued(images: Tensor) -> bool:
    return bool(((images == 0) | (images == 1)).all())


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
