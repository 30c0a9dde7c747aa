"""The statistics of a race: is a trial worse than the best one, judged on few instances.

Losses are compared as logarithms, because a hard instance raises every recipe's loss by about the
same factor.  In tables of losses, rows are complete trials and columns are instances in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

_ROOT_WITHIN = 1e-7
_POINTS = 120  # quadrature points for a density
_LEAST_PRIOR_TRIALS = 4  # with fewer trials the prior of the noise is not fitted, but pooled
_POOLED_DOF = 4.0  # of the pooled prior; recorded trials give 4.6 (benchmarks/replay.py)
_WIDTH = 8.0  # a density is cut off so many standard deviations below its mean


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison with the incumbent.

    ``p_value`` is the probability of a difference at least this bad if the candidate were as
    good; ``ratio`` is the candidate's loss over the incumbent's, as far as seen.
    """

    drop: bool
    p_value: float
    ratio: float


@dataclass(frozen=True)
class VariancePrior:
    """A scaled inverse chi-squared distribution of a variance, with ``dof`` as its weight."""

    scale: float
    dof: float


class Standings:
    """Instance difficulties, noise and the incumbent, estimated from complete trials.

    Args:
        losses: (n, K), positive and finite; each row is a complete trial, n >= 1.

    Raises:
        ValueError: the shape is another, or a loss is not positive.
    """

    def __init__(self, losses: Array) -> None:
        losses = np.asarray(losses, dtype=np.float64)
        if losses.ndim != 2 or not losses.size or not (np.isfinite(losses) & (losses > 0)).all():
            raise ValueError("losses are one row a trial, of positive numbers")
        logs = np.log(losses)
        means = logs.mean(1)
        best = int(losses.mean(1).argmin())
        self.n_trials, self.n_instances = logs.shape
        self.difficulty = logs.mean(0)  # (K,)
        self.best = float(means[best])  # the incumbent's mean log loss
        # Expected log losses of the incumbent, by its mean and each instance's difficulty, (K,).
        self.reference = self.difficulty + means[best] - logs.mean()
        residuals = logs - means[:, None] - self.difficulty + logs.mean()
        self.prior = _noise_prior(residuals)
        # The noise in the variance of trials' means, which are means of K instances.
        self.share_of_noise = _share_of_noise(residuals, means)
        # The incumbent's expected luck, in log loss. Trials' means are true values plus noise, both
        # taken as normal, so the expected true value of the best lies between its mean and the mean
        # of all (empirical Bayes; Efron and Morris, "Data analysis using Stein's estimator"
        # (1975)).
        self.optimism = max(0.0, self.share_of_noise * float(means.mean() - means[best]))

    def judge(self, losses: Sequence[float], alpha: float) -> Verdict:
        """Test whether a candidate is worse than the incumbent, by losses on the first instances.

        It is a one-sided t-test of the candidate's log losses, each less the incumbent's expected
        one: the incumbent's mean and the instance's difficulty for all complete trials.  (The
        incumbent's own loss on the instance is as noisy as the candidate's.)  Three refinements:

        - The test is repeated after each instance but the last.  Its level is such that all of
          these looks together drop an equal with probability ``alpha`` (`nominal_level`).
        - The variance of the differences is moderated by that of earlier trials (Smyth, "Linear
          models and empirical Bayes methods" (2004), section 4), so one or two instances can be
          enough.
        - The incumbent is the best of many and therefore lucky.  Its expected luck is taken off
          (`optimism`).
        """
        k = len(losses)
        if not 0 < k <= self.n_instances:
            raise ValueError(f"{k} losses; the race has {self.n_instances} instances")
        differences = np.log(np.asarray(losses, dtype=np.float64)) - self.reference[:k]
        mean = float(differences.mean())
        n, share = self.n_trials, k / self.n_instances
        noise = self.noise(differences)
        if noise.scale <= 0:
            return Verdict(False, 1.0, math.exp(mean))
        # Variances: of the candidate's mean, the incumbent's, and their difference in difficulty.
        error = math.sqrt(noise.scale / k * (1 + share + (1 - share) / n))
        p_value = upper_tail((mean - self.optimism) / error, noise.dof)
        level = nominal_level(alpha, max(1, self.n_instances - 1))
        return Verdict(p_value < level, p_value, math.exp(mean))

    def noise(self, differences: Array) -> VariancePrior:
        """The variance of a trial's log losses around its mean, moderated by earlier trials.

        Args:
            differences: the trial's log losses less the expected one on each instance, (k,).

        Returns:
            Weight and scale are 0 if nothing is known of the variance.
        """
        own_dof = len(differences) - 1
        dof = own_dof + self.prior.dof
        if dof <= 0:
            return VariancePrior(0.0, 0.0)
        if math.isinf(dof):
            return self.prior
        # Difficulties are means over n trials, so they have 1 / n of a trial's noise.
        own = float(differences.var(ddof=1)) / (1 + 1 / self.n_trials) if own_dof else 0.0
        return VariancePrior((own_dof * own + self.prior.dof * self.prior.scale) / dof, dof)

    def mean_log(self, losses: Sequence[float]) -> float:
        """Predict a trial's mean log loss over all instances from its losses on the first ones.

        Instances' difficulties are taken off, so a trial that met easy instances is not mistaken
        for a good one.
        """
        ratios = np.log(np.asarray(losses, dtype=np.float64)) - self.difficulty[: len(losses)]
        return float(ratios.mean() + self.difficulty.mean())

    def loss_at(self, mean_log: float) -> float:
        """The mean loss over all instances that belongs to a mean log loss."""
        return float(np.exp(self.difficulty - self.difficulty.mean() + mean_log).mean())

    def full_loss(self, losses: Sequence[float]) -> float:
        """Predict a trial's mean loss over all instances from its losses on the first ones."""
        return self.loss_at(self.mean_log(losses))


def upper_tail(t: float, dof: float) -> float:
    """The probability that Student's t with ``dof`` degrees of freedom is above ``t``."""
    return float(special.ndtr(-t) if math.isinf(dof) else special.stdtr(dof, -t))


def _noise_prior(residuals: Array) -> VariancePrior:
    """The prior of a trial's noise, from the residuals (n, K) of complete trials.

    Two or three trials do not tell how much trials differ in their noise, so theirs is pooled.
    """
    n, k = residuals.shape
    if n < 2 or k < 2:
        return VariancePrior(0.0, 0.0)
    variances = (residuals**2).sum(1) / ((k - 1) * (1 - 1 / n))
    if n < _LEAST_PRIOR_TRIALS:
        scale = float(variances.mean())
        return VariancePrior(scale, _POOLED_DOF if scale > 0 else 0.0)
    return variance_prior(variances, k - 1)


def variance_prior(variances: Array, dof: int) -> VariancePrior:
    """Fit the distribution that sample variances of ``dof`` degrees of freedom come from.

    By the moments of log variances (Smyth (2004), section 6.2).  With fewer than three variances
    the prior has weight 0.
    """
    variances = variances[variances > 0]
    if len(variances) < 3 or dof < 1:
        return VariancePrior(0.0, 0.0)
    half = dof / 2
    e = np.log(variances) - special.digamma(half) + math.log(half)
    excess = float(e.var(ddof=1) - special.polygamma(1, half))
    if excess <= 0:  # no more spread than by chance: one variance for all
        return VariancePrior(float(np.exp(e.mean())), math.inf)
    prior_half = _trigamma_inverse(excess)
    shift = special.digamma(prior_half) - math.log(prior_half)
    return VariancePrior(float(np.exp(e.mean() + shift)), 2 * prior_half)


def _trigamma_inverse(value: float) -> float:
    """x with trigamma(x) = value, for value > 0."""

    def excess(log_x: float) -> float:
        return float(np.log(special.polygamma(1, math.exp(log_x))) - math.log(value))

    return math.exp(_root(excess, -20.0, 20.0))


def _share_of_noise(residuals: Array, means: Array) -> float:
    """The share of noise in the variance of trials' mean log losses, in [0, 1].

    ``residuals`` are the log losses without the trials' and the instances' means. Two trials are
    too few to tell.
    """
    n, k = residuals.shape
    if n < 3 or k < 2:
        return 0.0
    noise = float((residuals**2).sum()) / ((n - 1) * (k - 1)) / k  # variance of a trial's mean
    spread = float(means.var(ddof=1))
    return min(1.0, noise / spread) if spread > 0 else 1.0


@cache
def nominal_level(alpha: float, looks: int) -> float:
    """The level of a test that is repeated ``looks`` times with an error rate of ``alpha`` in all.

    Pocock, "Group sequential methods in the design and analysis of clinical trials" (1977): a
    constant boundary for the standardised sum of normal differences, by the recursive
    integration of Armitage, McPherson and Rowe (1969).

    Raises:
        ValueError: ``alpha`` is not in (0, 1), or ``looks`` is below 1.
    """
    if not 0 < alpha < 1 or looks < 1:
        raise ValueError(f"alpha is {alpha} and looks {looks}; write 0 < alpha < 1 and looks >= 1")
    if looks == 1:
        return alpha
    boundary = _root(
        lambda c: _crossing_probability(c, looks) - alpha,
        -float(special.ndtri(alpha)) - 1e-6,
        -float(special.ndtri(alpha / looks)) + 1e-6,
    )
    return float(special.ndtr(-boundary))


def _crossing_probability(boundary: float, looks: int) -> float:
    """Probability that S_k > boundary sqrt(k) for some k <= looks; S is a standard random walk."""
    low = -_WIDTH * math.sqrt(looks)
    points, weights = _quadrature(low, boundary)
    mass = _normal_density(points) * weights  # probability of S_1 below the boundary
    crossed = float(special.ndtr(-boundary))
    for k in range(2, looks + 1):
        edge = boundary * math.sqrt(k)
        crossed += float(mass @ special.ndtr(points - edge))
        after, weights = _quadrature(low, edge)
        mass = weights * (_normal_density(after[:, None] - points) @ mass)
        points = after
    return crossed


def _normal_density(x: Array) -> Array:
    density: Array = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return density


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where a decreasing ``f`` is zero, by bisection: SciPy's solvers take long to import."""
    while high - low > _ROOT_WITHIN:
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) > 0 else (low, middle)
    return (low + high) / 2


def _quadrature(low: float, high: float) -> tuple[Array, Array]:
    """Gauss-Legendre points and weights for [low, high]."""
    points, weights = np.polynomial.legendre.leggauss(_POINTS)
    half = (high - low) / 2
    return low + half * (points + 1), half * weights
