"""Means over units with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over units with its confidence interval."""

    mean: float
    standard_error: float  # NaN for a single unit
    low: float
    high: float
    units: int

    @property
    def has_zero(self) -> bool:
        """Whether the interval contains zero, so that either side may be better."""
        return self.low <= 0 <= self.high


def interval(values: Sequence[float], comparisons: int = 1) -> Interval:
    """Mean of independent values with its two-sided 95 % interval by Student's t.

    Args:
        values: (n,).  A single value has an infinite interval; no values have a mean of NaN.
        comparisons: number of intervals that hold together with 95 % (Bonferroni): each has the
            level 1 - 0.05 / comparisons.
    """
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, -math.inf, math.inf, n)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    reach = float(stdtrit(n - 1, 1 - (1 - CONFIDENCE) / (2 * comparisons))) * error
    return Interval(mean, error, mean - reach, mean + reach, n)


def units_of(runes: Mapping[str, str]) -> dict[str, str]:
    """The unit of each instance: its rune, or the instance itself if there is only one rune.

    With one rune, errors do not cover the variation between runes.
    """
    if len(set(runes.values())) > 1:
        return dict(runes)
    return {instance: instance for instance in runes}


def unit_means(values: Mapping[str, float], units: Mapping[str, str]) -> dict[str, float]:
    """Mean of the instances' values in each unit."""
    by_unit: dict[str, list[float]] = {}
    for instance, value in values.items():
        by_unit.setdefault(units[instance], []).append(value)
    return {unit: sum(v) / len(v) for unit, v in by_unit.items()}
