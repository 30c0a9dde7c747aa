"""How trials came out by the value of one parameter, in a few groups."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from ..trial.outcome import Outcome

# The recipe's fields of its augmentation mix.
AUGMENTATIONS = (
    *("render", "rotation_deg", "scale", "aspect", "shear", "slope", "shift_px"),
    *("elastic_px", "vertical"),
)
_N_GROUPS = 3
_LEAST = 3  # trials in a group, for an error that means something
_MEASURED = (Outcome.COMPLETE, Outcome.PRUNED)


@dataclass(frozen=True)
class Group:
    """Trials that are alike in a parameter."""

    label: str  # their value, or the range of their values
    n: int
    difference: float  # of their mean log-loss to that of all: about a relative change
    standard_error: float


def outcomes(trials: Sequence[FrozenTrial], name: str) -> list[Group]:
    """Groups by the parameter's value, from low to high; none where they would be too small.

    Complete trials count by their loss and pruned ones by their estimated loss: a value whose
    trials are mostly dropped is a bad one.  A group's trials differ in everything else, too, so
    a sampler that has made up its mind about another parameter shows up here as well.
    """
    points = [
        (t.params[name], math.log(t.value))
        for t in trials
        if name in t.params
        and t.user_attrs.get("outcome") in _MEASURED
        and t.value is not None
        and 0 < t.value < math.inf
    ]
    if len({value for value, _ in points}) < 2:
        return []
    one = next(t for t in trials if name in t.params)
    if isinstance(one.distributions[name], CategoricalDistribution):
        groups = _by_value(points)
    else:
        groups = _by_rank(points)
    mean = statistics.fmean(loss for _, loss in points)
    return [
        Group(
            label=label,
            n=len(losses),
            difference=statistics.fmean(losses) - mean,
            standard_error=statistics.stdev(losses) / math.sqrt(len(losses)),
        )
        for label, losses in groups
        if len(losses) >= _LEAST
    ]


def _by_value(points: Sequence[tuple[Any, float]]) -> list[tuple[str, list[float]]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for value, loss in points:
        groups[str(value)].append(loss)
    return sorted(groups.items())


def _by_rank(points: Sequence[tuple[Any, float]]) -> list[tuple[str, list[float]]]:
    ordered = sorted(points)
    ends = [round(i * len(ordered) / _N_GROUPS) for i in range(_N_GROUPS + 1)]
    parts = [ordered[a:b] for a, b in pairwise(ends) if b > a]
    return [(f"{p[0][0]:.2g} to {p[-1][0]:.2g}", [loss for _, loss in p]) for p in parts]
