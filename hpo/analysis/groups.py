"""Mean losses of trials, grouped by the value of one parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..formatting import setting
from ..trial.run import Run
from ..trial.stored import finite

# Fields of the recipe that make up the augmentation mix.
AUGMENTATIONS = (
    *("render", "rotation_deg", "scale", "aspect", "shear", "slope", "shift_px"),
    *("elastic_px", "vertical", "blend", "blend_from_t", "blend_spread"),
)
_N_GROUPS = 3  # groups of a numeric parameter
_LEAST = 6  # with fewer trials there are no groups


@dataclass(frozen=True)
class Group:
    """Trials with similar values of a parameter."""

    label: str  # a value, or the range of values
    trials: int
    loss: float  # mean
    standard_error: float | None  # over trials; None for a single trial


def measured_runs(runs: Sequence[Run]) -> list[Run]:
    """The trials to group: those with a loss.

    Pruned trials count with their predicted loss, because a value whose trials are mostly pruned is
    a bad one.
    """
    return [
        r for r in runs
        if r.loss is not None and r.calls and r.feasible and r.state.name in ("COMPLETE", "PRUNED")
    ]  # fmt: skip


def groups_of(runs: Sequence[Run], name: str) -> list[Group]:
    """Group trials by their values of a parameter; a number's values are split into thirds.

    Returns:
        The groups from low to high; none if there are too few trials or only one value.
    """
    having = [r for r in runs if name in r.params]
    values = [r.params[name] for r in having]
    if len(having) < _LEAST or len({repr(v) for v in values}) < 2:
        return []
    if any(finite(v) is None for v in values):
        labels = sorted({setting(v) for v in values})
        return [
            _group(label, [r for r in having if setting(r.params[name]) == label])
            for label in labels
        ]
    ordered = sorted(having, key=lambda r: (float(r.params[name]), r.number))
    groups: list[list[Run]] = []
    for part in np.array_split(np.arange(len(ordered)), _N_GROUPS):
        runs_of_part = [ordered[i] for i in part]
        # Equal values stay in one group.
        while groups and runs_of_part and _same(groups[-1][-1], runs_of_part[0], name):
            groups[-1].append(runs_of_part.pop(0))
        if runs_of_part:
            groups.append(runs_of_part)
    if len(groups) < 2:
        return []
    decimals = _decimals(float(ordered[-1].params[name]) - float(ordered[0].params[name]))
    return [_group(_range(g, name, decimals), g) for g in groups]


def _decimals(span: float) -> int:
    """Number of decimals that tells the parts of a range apart."""
    return max(0, 1 - math.floor(math.log10(span)))


def _same(one: Run, other: Run, name: str) -> bool:
    return bool(one.params[name] == other.params[name])


def _range(runs: Sequence[Run], name: str, decimals: int) -> str:
    values = [float(r.params[name]) for r in (runs[0], runs[-1])]
    if all(x.is_integer() for x in values):
        decimals = 0
    first, last = (f"{x:.{decimals}f}" for x in values)
    return first if first == last else f"{first}–{last}"


def _group(label: str, runs: Sequence[Run]) -> Group:
    losses = np.array([r.loss for r in runs], float)
    n = len(losses)
    error = float(losses.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return Group(label, n, float(losses.mean()), error)
