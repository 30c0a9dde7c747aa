"""The statistics of a race whose first instances are looks: cheap calls at a lower speed.

What counts is the mean loss at the highest speed, the target.  Looks predict it: over the trials
with both, a trial's mean log loss at the target is a straight line of its mean log loss in looks,
and a deviation that is the trial's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .statistics import Array, Standings, Verdict, nominal_level, upper_tail

# Prior standard deviation of a recipe around the line, in log loss, ...
_PRIOR_DEVIATION = 0.05
_PRIOR_DOF = 3.0  # ... which weighs as much as so many trials
_SLOPE_DEVIATION = 0.3  # prior standard deviation of the line's slope around 1
_LEAST_SLOPE = 0.2
_LEAST_LEVELS = 10  # with fewer trials the spread of recipes is unknown
# A low quantile, and how many standard deviations a normal's lies below its median.
_LOW_QUANTILE, _LOW_NORMAL = 0.1, 1.2816


@dataclass(frozen=True)
class Line:
    """Regression of the mean log loss at the target on the mean log loss in looks.

    ``variance`` is that of a trial around the line; it has ``dof`` degrees of freedom and comes
    from ``n`` trials.
    """

    intercept: float
    slope: float
    variance: float
    dof: float
    n: int

    def at(self, look: float) -> float:
        """The mean log loss at the target that a look predicts."""
        return self.intercept + self.slope * look


def fit_line(looks: Array, targets: Array) -> Line:
    """Fit the line to trials that have both looks and calls at the target; no trials: the prior.

    Slope and deviation are shrunk to 1 and `_PRIOR_DEVIATION`, because a few trials say little.
    Promotion chooses trials by their looks. That does not bias this regression of target on looks;
    it would bias the opposite one.

    Args:
        looks: losses, (n, L).
        targets: losses of the same trials, (n, T).
    """
    n = len(looks)
    if not n:
        return Line(0.0, 1.0, _PRIOR_DEVIATION**2, _PRIOR_DOF, 0)
    means, ends = np.log(looks).mean(1), np.log(targets).mean(1)
    x, y = means - means.mean(), ends - ends.mean()
    weight = (_PRIOR_DEVIATION / _SLOPE_DEVIATION) ** 2
    slope = max(_LEAST_SLOPE, float((x @ y + weight) / (x @ x + weight)))
    dof = _PRIOR_DOF + n - 1
    squares = float(((y - slope * x) ** 2).sum())
    variance = (_PRIOR_DOF * _PRIOR_DEVIATION**2 + squares) / dof
    return Line(float(ends.mean() - slope * means.mean()), slope, variance, dof, n)


class LookStandings:
    """Statistics of a study whose first instances are looks.

    Args:
        whole: for each complete trial, its losses on all instances.
        partial: for each pruned trial, its losses on the first instances.
        n_looks: how many of the instances are looks. At least one trial has made all of them.
    """

    def __init__(
        self, whole: Sequence[Sequence[float]], partial: Sequence[Sequence[float]], n_looks: int
    ) -> None:
        self.n_looks = n_looks
        # The number of instances is unknown before the first trial is complete.
        self.n_instances = len(whole[0]) if whole else n_looks + 1
        rows = _longest([*whole, *partial], n_looks)
        self.looks = Standings(np.array([row[:n_looks] for row in rows if len(row) >= n_looks]))
        complete = np.array(
            [row for row in rows if whole and len(row) == self.n_instances]
        ).reshape(-1, self.n_instances)
        self.target = Standings(complete[:, n_looks:]) if len(complete) else None
        levels = np.array([self.looks.mean_log(row[:n_looks]) for row in rows])
        self.line = fit_line(complete[:, :n_looks], complete[:, n_looks:])
        self._center, self._spread = _spread_of(levels)

    def judge(self, losses: Sequence[float], alpha: float) -> Verdict:
        """Test whether a candidate is worse at the target than the incumbent, by its first losses.

        Looks and calls at the target have half of ``alpha`` each: a recipe that is as good as the
        incumbent at the target is dropped in either with at most that probability.
        """
        looks, target = losses[: self.n_looks], losses[self.n_looks :]
        if not len(target):
            return self._judge_looks(looks, alpha / 2)
        if self.target is None:
            return Verdict(False, 1.0, 1.0)
        return self.target.judge(target, alpha / 2)

    def _judge_looks(self, losses: Sequence[float], alpha: float) -> Verdict:
        """A t-test of the candidate's mean in looks against that of an equal of the incumbent."""
        k = len(losses)
        expected, variance = self._equals_look()
        mean = self.looks.mean_log(losses)
        noise = self.looks.noise(np.log(losses) - self.looks.difficulty[:k])
        ratio = math.exp(self.line.slope * (mean - expected))
        if noise.scale <= 0:
            return Verdict(False, 1.0, ratio)
        chance = noise.scale * (1 / k - 1 / self.n_looks)  # noise of the looks still to be made
        total = variance + chance
        # Degrees of freedom by Welch and Satterthwaite.
        dof = total**2 / (variance**2 / self.line.dof + chance**2 / noise.dof)
        p_value = upper_tail((mean - expected) / math.sqrt(total), dof)
        return Verdict(p_value < nominal_level(alpha, self.n_looks), p_value, ratio)

    def _equals_look(self) -> tuple[float, float]:
        """Mean and variance of the log loss that a recipe as good as the incumbent has in looks.

        Before a trial is complete, the incumbent is the trial with the best looks.
        """
        slope, own = self.line.slope, self.line.variance
        if self.target is None:
            return self.looks.best, 2 * own / slope**2
        own *= 1 + 1 / self.line.n
        # By Bayes' rule from the line and the spread of recipes in looks. The incumbent is better
        # than most recipes, so the looks of its equals regress to the mean of all.
        best = self.target.best + self.target.optimism
        ahead = best - self.line.at(self._center)
        if math.isinf(self._spread):
            return self._center + ahead / slope, own / slope**2
        prior = self._spread**2
        whole = slope**2 * prior + own
        return self._center + slope * prior / whole * ahead, prior * own / whole

    def predicted(self, losses: Sequence[float]) -> float:
        """Predict a trial's mean log loss at the target from its first losses.

        Looks and calls at the target are weighted by the inverse of their variances.
        """
        looks, target = losses[: self.n_looks], losses[self.n_looks :]
        by_looks = self.line.at(self.looks.mean_log(looks))
        if not len(target):
            return by_looks
        if self.target is None:
            return float(np.log(target).mean())
        k, n = len(target), self.n_instances - self.n_looks
        noise = self.target.noise(np.log(target) - self.target.difficulty[:k]).scale
        variance = noise * (1 / k - 1 / n)
        share = self.line.variance / (self.line.variance + variance)  # weight of target calls
        return share * self.target.mean_log(target) + (1 - share) * by_looks

    def full_loss(self, losses: Sequence[float]) -> float:
        """Predict a trial's mean loss at the target from its first losses."""
        return (self.target or self.looks).loss_at(self.predicted(losses))


def _longest(rows: Sequence[Sequence[float]], n_looks: int) -> list[list[float]]:
    """Each recipe once: a promoted trial has the same looks as the trial that waited."""
    found: dict[tuple[float, ...], list[float]] = {}
    for row in rows:
        key = tuple(row[:n_looks])
        if len(row) > len(found.get(key, ())):
            found[key] = list(row)
    return list(found.values())


def _spread_of(levels: Array) -> tuple[float, float]:
    """Median of recipes in looks, and a standard deviation by the better ones.

    Bad recipes lie far away and say nothing of the good ones. With too few trials the deviation
    is infinite.
    """
    center = float(np.median(levels))
    if len(levels) < _LEAST_LEVELS:
        return center, math.inf
    spread = (center - float(np.quantile(levels, _LOW_QUANTILE))) / _LOW_NORMAL
    return center, spread if spread > 0 else math.inf
