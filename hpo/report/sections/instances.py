"""Losses by instance: which runes are hard, and where the best recipe gains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...analysis.references import Place, confirmed_places, losses_of, losses_on, searched_places
from ...formatting import with_error
from ...study.confirmation import BASELINE, Confirmation
from ...trial.record import Call
from ..data import StudyData
from ..document import Block, Figure, Pair, Section, Table, Text
from ..plots import Mark, Row, RowPlot

_MOST_ROWS = 60
_SIGMAS = 2.0

# Losses by instance, by the name of the recipe that has them.
Losses = dict[str, Mapping[str, Call]]


def instances_section(data: StudyData) -> Section:
    """A figure and a table for the unseen instances, and one for those of the search."""
    blocks = [*_confirmed(data), *_searched(data)]
    if not blocks:
        blocks = [Text("No complete trial has losses by instance.")]
    return Section("instances", "Loss by rune", blocks)


def _confirmed(data: StudyData) -> Iterator[Block]:
    confirmed = data.confirmation
    if not isinstance(confirmed, Confirmation):
        return
    losses: Losses = {}
    for row in confirmed.table:
        if row.digest == confirmed.digest or row.name == BASELINE:
            found = losses_of(data.attrs, row, confirmed.instances)
            if found:
                name = "default" if row.name == BASELINE else row.title
                losses[name] = found
    if not losses:
        yield Text("A later confirmation has begun, so losses by unseen instance are not shown.")
        return
    # The winner comes first.
    ordered = dict(sorted(losses.items(), key=lambda item: item[0] == "default"))
    places = confirmed_places(data.manifest, confirmed.instances)
    ordered |= _references(data, places)
    yield from _shown("unseen", "Loss on instances that no trial saw", ordered)


def _searched(data: StudyData) -> Iterator[Block]:
    best = next((r for r in data.best if r.calls), None)
    if best is None:
        return
    losses: Losses = {f"trial {best.number}": best.by_instance}
    default = data.default_run
    if default is not None and default is not best:
        losses["default"] = default.by_instance
    losses |= _references(data, searched_places(data.manifest))
    yield from _shown("searched", "Loss on the instances of the search", losses)


def _references(data: StudyData, places: Sequence[Place]) -> Losses:
    found = losses_on(data.references, data.manifest, places)
    return {f"reference {name}": on for name, on in found.items()}


def _shown(name: str, title: str, losses: Losses) -> Iterator[Block]:
    series = list(losses)
    labels = list(next(iter(losses.values())))
    shown = labels[:_MOST_ROWS]
    resizes = {label.partition(" ")[2] for label in shown}
    if len(resizes) == 1 and (resize := resizes.pop()):
        title += f" ({resize} drawings)"
        short = {label: label.partition(" ")[0] for label in shown}
    else:
        short = {label: label for label in shown}
    rows = [
        Row(
            short[label],
            [_mark(name, calls[label]) for name, calls in losses.items() if label in calls],
        )
        for label in shown
    ]
    figure = Figure(
        RowPlot(
            f"instances-{name}",
            title,
            f"{len(shown)} instances, one a row, with {' and '.join(series)}; further left is "
            "better. The table has the values.",
            "loss",
            rows,
            series,
        ),
        f"{title}, with intervals of two standard errors of the noise (often narrower than "
        "their marks).",
    )
    table = Table(
        title + (f": the first {_MOST_ROWS} of {len(labels)}" if len(labels) > _MOST_ROWS else ""),
        ("instance", *series),
        [
            (short[label], *(_cell(calls.get(label)) for calls in losses.values()))
            for label in shown
        ],
        numbers=range(1, len(series) + 1),
    )
    yield Pair(figure, table)


def _mark(series: str, call: Call) -> Mark:
    if call.standard_error is None:
        return Mark(series, call.loss)
    reach = _SIGMAS * call.standard_error
    return Mark(series, call.loss, call.loss - reach, call.loss + reach)


def _cell(call: Call | None) -> str:
    return "" if call is None else with_error(call.loss, call.standard_error)
