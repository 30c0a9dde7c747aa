"""What came of each augmentation: the loss of trials that used little, some and much of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...analysis.groups import AUGMENTATIONS
from ...formatting import setting, with_error
from ...study.space import RECIPE_FIELDS
from ...trial.run import Run
from ...trial.stored import finite
from ..data import Given
from ..document import Block, Figure, Figures, Section, Table, Text
from ..svg.axes import Axis, Plot, label_axis
from ..svg.scale import around
from .parameters import SMALL_HIGH, SMALL_WIDE

_PARTS = 3  # of a number's values
_NEEDED = 6  # trials, before anything is said


@dataclass(frozen=True)
class Group:
    """Trials with like values of an augmentation."""

    label: str  # a value, or the least and the most
    trials: int
    loss: float  # mean
    standard_error: float | None  # over trials; None: of a single one


def augmented_section(given: Given) -> Section:
    """A table, and a small figure for each augmentation that the study varied."""
    return Section("augmentations", "What came of each augmentation", list(_blocks(given)))


def _blocks(given: Given) -> Iterator[Block]:
    # Pruned trials have an estimate of the loss that they would have had.
    measured = [r for r in given.runs if r.loss is not None and r.calls and r.feasible
                and r.state.name in ("COMPLETE", "PRUNED")]  # fmt: skip
    found = {name: groups for name in AUGMENTATIONS if (groups := groups_of(measured, name))}
    if not found:
        yield Text("Too few trials with different augmentations have a loss.")
        return
    best = given.best[0].params if given.best else {}
    yield Text(
        f"Mean loss of the {len(measured)} trials that were measured, complete or pruned (with "
        "the loss that they would probably have had), by how much of an augmentation they used: "
        "thirds of the trials, from those with the least to those with the most."
    )
    bounds = [
        g.loss + sign * (g.standard_error or 0.0)
        for groups in found.values()
        for g in groups
        for sign in (-1, 1)
    ]
    losses = Axis("mean loss", *around(bounds))  # one for all, so that they can be compared
    yield Figures(
        [
            _figure(f"augmentation-{i}", name, groups, losses)
            for i, (name, groups) in enumerate(found.items())
        ]
    )
    most = max(len(groups) for groups in found.values())
    yield Table(
        "Values of each augmentation, the mean loss with its standard error over trials, and how "
        "many trials that are",
        ("augmentation", *("least", "more", "most")[:most], "in the best trial")
        if most <= _PARTS
        else ("augmentation", *(f"value {i + 1}" for i in range(most)), "in the best trial"),
        [
            (
                name,
                *(_cell(g) for g in groups),
                *[""] * (most - len(groups)),
                setting(best[name]) if name in best else "",
            )
            for name, groups in found.items()
        ],
        numbers=range(1, most + 2),
    )
    yield Text(
        "This describes and proves nothing: the sampler chose the values, and chose those of "
        "other parameters with them.",
        aside=True,
    )


def _cell(group: Group) -> str:
    return f"{group.label}: {with_error(group.loss, group.standard_error)} ({group.trials})"


def groups_of(runs: Sequence[Run], name: str) -> list[Group]:
    """Trials by their values of a parameter, thirds of them if it is a number.

    None if there are too few trials, or all have the same value.
    """
    having = [r for r in runs if name in r.params]
    values = [r.params[name] for r in having]
    if len(having) < _NEEDED or len({repr(v) for v in values}) < 2:
        return []
    numbers = [finite(v) for v in values]
    if any(x is None for x in numbers):
        labels = sorted({setting(v) for v in values})
        return [_group(label, [r for r in having if setting(r.params[name]) == label])
                for label in labels]  # fmt: skip
    ordered = sorted(having, key=lambda r: (float(r.params[name]), r.number))
    groups: list[list[Run]] = []
    for part in np.array_split(np.arange(len(ordered)), _PARTS):
        runs_of_part = [ordered[i] for i in part]
        # Equal values stay together.
        while groups and runs_of_part and _same(groups[-1][-1], runs_of_part[0], name):
            groups[-1].append(runs_of_part.pop(0))
        if runs_of_part:
            groups.append(runs_of_part)
    if len(groups) < 2:
        return []
    decimals = _decimals(float(ordered[-1].params[name]) - float(ordered[0].params[name]))
    return [_group(_range(g, name, decimals), g) for g in groups]


def _decimals(span: float) -> int:
    """Enough to tell parts of a range from each other."""
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


def _figure(identifier: str, name: str, groups: Sequence[Group], losses: Axis) -> Figure:
    plot = Plot(
        identifier,
        f"Mean loss by {name}",
        "; ".join(f"{g.label}: {with_error(g.loss, g.standard_error)}" for g in groups),
        label_axis(name, [g.label for g in groups]),
        losses,
        SMALL_WIDE,
        SMALL_HIGH,
    )
    for i, g in enumerate(groups):
        error = g.standard_error or 0.0
        plot.whisker(i, g.loss - error, g.loss + error, "whisker first")
    plot.dots([(i, g.loss) for i, g in enumerate(groups)], "large first")
    field = RECIPE_FIELDS[name].metadata
    unit = field.get("unit", "1")
    return Figure(plot.markup(), field["meaning"] + (f", {unit}" if unit != "1" else ""))
