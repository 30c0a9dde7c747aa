"""The cost model of a machine profile, fitted to measured times."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from ..problem.base import Workload
from .profile import Check, Profile

Amounts = Mapping[str, float]


@dataclass(frozen=True)
class Timing:
    """A short call, timed."""

    work: Workload
    startup_s: float  # before the first step
    step_s: float  # mean of one step


def fit(amounts: Sequence[Amounts], seconds: Sequence[float]) -> dict[str, float]:
    """Fit the seconds that one unit of each kind of work takes; none is below zero.

    Non-negative least squares of relative errors, so that short and long steps count alike
    (Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23).

    Args:
        amounts: for each measurement, the amount of each kind of work.
        seconds: for each measurement, the time that it took.
    """
    names = list(dict.fromkeys(name for one in amounts for name in one))
    measured = np.asarray(seconds, dtype=np.float64)
    design = np.array([[one.get(name, 0.0) for name in names] for one in amounts])
    solution, _ = nnls(design / measured[:, None], np.ones_like(measured))
    return {name: float(f"{value:.5g}") for name, value in zip(names, solution, strict=True)}


def check(profile: Profile, timings: Sequence[Timing]) -> Check:
    """Relative errors of a profile's predictions on timings that it was not fitted to."""
    steps = [abs(profile.step_s(t.work) / t.step_s - 1) for t in timings]
    startups = [abs(profile.startup_s(t.work) / t.startup_s - 1) for t in timings]
    return Check(
        recipes=len(timings),
        step_median_error=round(statistics.median(steps), 4),
        step_largest_error=round(max(steps), 4),
        startup_median_error=round(statistics.median(startups), 4),
        startup_largest_error=round(max(startups), 4),
    )
