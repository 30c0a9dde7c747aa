"""Means and what they are worth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Figure = tuple[float, float]  # a value and its standard error


def mean_and_error(values: Sequence[float]) -> Figure:
    """The mean and its standard error, which is NaN when there is one value."""
    known = len(values) > 1
    error = statistics.stdev(values) / math.sqrt(len(values)) if known else math.nan
    return statistics.fmean(values), error


def ratio(over: Sequence[float], under: Sequence[float]) -> Figure:
    """Ratio of the means of paired values, with its error by the delta method."""
    mean = statistics.fmean(under)
    value = statistics.fmean(over) / mean
    residuals = [a - value * b for a, b in zip(over, under, strict=True)]
    return value, mean_and_error(residuals)[1] / mean
