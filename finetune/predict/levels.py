"""The grey levels that a pixel can have after ink and paper were resized.

After a plain resize they are the 16 values of 2x2 bits; else paper, ink and steps between.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..augment.resizing import listed_levels

_N_BINS = 16  # levels if values can't be listed: paper, ink and equal steps between
_EDGE = 1e-3  # values this near to 0 and 1 are paper and ink
_LEAST_VARIANCE = 1e-8
_LEAST_DEVIATION = 1e-6  # so that at t = 0 the deviation is not zero
_LEAST_SHARE = 1e-5  # least prior of a level, so that its logarithm is finite


class GreyLevels(nn.Module):
    """A mixture model of a pixel's grey value: N(mean, variance) for each of K levels.

    Means are (K, H, W), or (K, 1, 1) in order of grey if all pixels are alike; variances are
    (K, 1, 1), or (1, 1, 1) if all levels are alike; the levels' prior is (K, 1, 1).
    """

    means: Tensor
    variances: Tensor
    log_prior: Tensor

    def __init__(self, means: Tensor, variances: Tensor, log_prior: Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("variances", variances)
        self.register_buffer("log_prior", log_prior)

    def nearest(self, x: Tensor) -> Tensor:
        """The most likely level of each pixel of ``x`` (n, 1, H, W): (n, H, W) long."""
        return ((x - self.means).square() / self.variances + self.variances.log()).argmin(1)

    def posterior(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Evidence of each pixel of ``x_t`` (B, 1, H, W) at times t (B, 1, 1, 1) by itself.

        Returns:
            Each level's log-likelihood, up to a constant for each pixel, and the pixel's mean
            value given that level, both (B, K, H, W).  Under a level N(m, s^2), x_t has the
            density N((1 - t) m, (1 - t)^2 s^2 + t^2).
        """
        variance = ((1 - t).square() * self.variances + t.square()).clamp(min=_LEAST_DEVIATION**2)
        # As few passes as possible over all levels of all pixels, which are the slowest part.
        error = torch.addcmul(x_t, self.means, t - 1)
        prior = self.log_prior
        if len(self.variances) > 1:  # otherwise it is the same for all levels
            prior = prior - 0.5 * variance.log()
        gain = (1 - t) * self.variances / variance
        log_probability = torch.addcmul(prior, error, error * (-0.5 / variance))
        return log_probability, torch.addcmul(self.means, error, gain)


def grey_levels(drawings: Tensor, samples: Tensor, operator: Tensor | None) -> GreyLevels:
    """Find the levels of drawings.

    Args:
        drawings: real drawings, (n, 1, 28, 28) in [0, 1].
        samples: many augmented drawings, (N, 1, 28, 28), for the levels' prior.
        operator: the matrix (28, m) of the drawings' resize, if it is known.
    """
    pixels = torch.cat([drawings, samples])
    if operator is None and ((pixels == 0) | (pixels == 1)).all():
        operator = torch.eye(drawings.shape[-1]).to(drawings)  # each pixel is one bit
    means = listed_levels(operator)
    if means is not None:
        # Deviations from the listed values, such as a file format's rounding, widen every level.
        floor = means.new_full((1, 1, 1), _LEAST_VARIANCE)
        label = GreyLevels(means, floor, floor).nearest(drawings)[:, None]
        explained = means.expand(len(drawings), -1, -1, -1).gather(1, label)
        variances = floor + (drawings - explained).square().mean()
    else:
        means, variances = _binned(pixels.flatten())
    levels = GreyLevels(means, variances, torch.zeros_like(variances))
    labels = levels.nearest(samples).flatten()
    shares = labels.bincount(minlength=len(means)) / len(labels)
    levels.log_prior = torch.log(shares + _LEAST_SHARE)[:, None, None]
    return levels


def _binned(values: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances, (K, 1, 1), of ``values`` in bins: paper, equal steps, ink."""
    steps = torch.linspace(_EDGE, 1 - _EDGE, _N_BINS - 1, device=values.device)
    bins = torch.bucketize(values, steps)
    counts = bins.bincount(minlength=_N_BINS).to(values)
    means = torch.zeros_like(counts).index_add(0, bins, values) / counts.clamp(min=1)
    squares = torch.zeros_like(counts).index_add(0, bins, (values - means[bins]).square())
    variances = squares / counts.clamp(min=1) + _LEAST_VARIANCE
    return means[:, None, None], variances[:, None, None]
