"""Augmentations: the loss of trials that used little, some and much of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...analysis.groups import AUGMENTATIONS, Group, groups_of, measured_runs
from ...formatting import counted, setting, with_error
from ...problem.base import Field
from ..data import StudyData
from ..document import Block, Figure, Figures, Section, Table, Text
from ..plots import Axis, Plot, Series, around, label_axis


def augmentations_section(data: StudyData) -> Section:
    """A table, and a small figure for each augmentation that the study varied."""
    return Section("augmentations", "Augmentations", list(_blocks(data)))


def _blocks(data: StudyData) -> Iterator[Block]:
    measured = measured_runs(data.runs)
    found = {name: groups for name in AUGMENTATIONS if (groups := groups_of(measured, name))}
    if not found:
        yield Text("Too few trials with different augmentations have a loss.")
        return
    best = data.best[0].params if data.best else {}
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
    fields = data.config.load_method().fields
    losses = Axis("mean loss", *around(bounds))  # the same for all, so that they can be compared
    yield Figures(
        "augmentations",
        "Mean loss by augmentation",
        [
            _figure(f"augmentation-{i}", name, groups, losses, fields.get(name))
            for i, (name, groups) in enumerate(found.items())
        ],
    )
    most = max(len(groups) for groups in found.values())
    yield Table(
        "Values of each augmentation, the mean loss with its standard error over trials, and how "
        "many trials that are",
        ("augmentation", *("least", "more", "most")[:most], "in the best trial")
        if most <= 3
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


def _figure(
    identifier: str, name: str, groups: Sequence[Group], losses: Axis, field: Field | None
) -> Figure:
    plot = Plot(
        identifier,
        f"Mean loss by {name}",
        "; ".join(f"{g.label}: {with_error(g.loss, g.standard_error)}" for g in groups),
        label_axis(name, [g.label for g in groups]),
        losses,
        [
            Series(
                "mean loss",
                "best",
                [(i, g.loss) for i, g in enumerate(groups)],
                [counted(g.trials, "trial") for g in groups],
                [g.standard_error or 0.0 for g in groups],
            )
        ],
        is_small=True,
    )
    meaning = ", ".join(text for text in (field.meaning, field.unit) if text) if field else ""
    return Figure(plot, meaning)
