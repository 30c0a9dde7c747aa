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

# Before trials have both speeds, looks are taken to be off by so much, in log loss, ...
_PRIOR_DEVIATION = 0.05
_PRIOR_DOF = 3.0  # ... with the weight of so many trials
_SLOPE_DEVIATION = 0.3  # of the line's slope around 1, before that
_LEAST_SLOPE = 0.2
_LEAST_LEVELS = 10  # trials that tell how recipes are spread
_LOW_QUANTILE, _LOW_NORMAL = 0.1, 1.2816  # the normal distribution's, below its median


@dataclass(frozen=True)
class Line:
    """Mean log loss at the target from that in looks, with the deviation of single trials.

    ``variance`` is a trial's around the line, known with ``dof`` degrees of freedom, from ``n``
    trials.
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
    """The line through the mean log losses of trials with both; n = 0 gives what is assumed before.

    Slope and deviation are shrunk to a slope of 1 and `_PRIOR_DEVIATION`: a few trials do not tell.
    That trials were chosen by their looks does not bias it, as it would the line of looks from
    targets.

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
    """What the trials of a study say where the first instances are looks.

    Args:
        whole: losses on all instances of a complete trial each.
        partial: of a pruned one, on the first instances.
        n_looks: how many of the instances are looks; one trial has met these at least.
    """

    def __init__(
        self, whole: Sequence[Sequence[float]], partial: Sequence[Sequence[float]], n_looks: int
    ) -> None:
        self.n_looks = n_looks
        # Before a trial is complete nobody knows how many there are.
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
        """Whether a candidate's first losses show it to be worse than the incumbent at the target.

        Looks and calls at the target have half of ``alpha`` each.  A recipe that is as good as the
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
        chance = noise.scale * (1 / k - 1 / self.n_looks)  # of the looks that are not made yet
        total = variance + chance
        # Welch and Satterthwaite.
        dof = total**2 / (variance**2 / self.line.dof + chance**2 / noise.dof)
        p_value = upper_tail((mean - expected) / math.sqrt(total), dof)
        return Verdict(p_value < nominal_level(alpha, self.n_looks), p_value, ratio)

    def _equals_look(self) -> tuple[float, float]:
        """The mean log loss in looks of an equal of the incumbent: its mean and variance.

        Before a trial is complete, the incumbent is the trial of the best looks.
        """
        slope, own = self.line.slope, self.line.variance
        if self.target is None:
            return self.looks.best, 2 * own / slope**2
        own *= 1 + 1 / self.line.n
        # By Bayes' rule, from how recipes are spread in looks and the line: the incumbent is
        # better than most, so its equals' looks are on average less good than the line says.
        best = self.target.best + self.target.optimism
        ahead = best - self.line.at(self._center)
        if math.isinf(self._spread):
            return self._center + ahead / slope, own / slope**2
        prior = self._spread**2
        whole = slope**2 * prior + own
        return self._center + slope * prior / whole * ahead, prior * own / whole

    def predicted(self, losses: Sequence[float]) -> float:
        """The mean log loss at the target that a trial's first losses predict.

        Looks and calls at the target count by the inverse of their variances.
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
        share = self.line.variance / (self.line.variance + variance)  # of the calls at the target
        return share * self.target.mean_log(target) + (1 - share) * by_looks

    def full_loss(self, losses: Sequence[float]) -> float:
        """The mean loss at the target that a trial's first losses predict."""
        return (self.target or self.looks).loss_at(self.predicted(losses))


def _longest(rows: Sequence[Sequence[float]], n_looks: int) -> list[list[float]]:
    """Each recipe once: one that was promoted has the looks of its first trial."""
    found: dict[tuple[float, ...], list[float]] = {}
    for row in rows:
        key = tuple(row[:n_looks])
        if len(row) > len(found.get(key, ())):
            found[key] = list(row)
    return list(found.values())


def _spread_of(levels: Array) -> tuple[float, float]:
    """Where recipes lie in looks, and how far the better ones are below that: a normal's deviation.

    Bad recipes are far away and say nothing of the good ones.  Infinite: too few trials.
    """
    center = float(np.median(levels))
    if len(levels) < _LEAST_LEVELS:
        return center, math.inf
    spread = (center - float(np.quantile(levels, _LOW_QUANTILE))) / _LOW_NORMAL
    return center, spread if spread > 0 else math.inf
