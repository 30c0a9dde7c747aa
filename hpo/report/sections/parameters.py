"""Parameters: importances with their errors, and loss against each value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from optuna.distributions import CategoricalDistribution

from ...analysis.status import Status
from ...formatting import setting
from ...trial.run import Run
from ...trial.stored import finite
from ..data import StudyData
from ..document import Block, Figure, Figures, Pair, Section, Table, Text
from ..plots import Mark, Plot, Row, RowPlot, Series, axis_of, label_axis
from ..sanitize import plain
from .history import loss_limit

_MOST_ROWS = 12
_MOST_SLICES = 6
_MOST_CHOICES = 8
_SPREAD = 0.5  # dots of a choice are spread over this share of the gap between choices
_GOLDEN = 0.618034
_TOP_SHARE = 0.1  # share of the trials that stand out in the plots


def parameters_section(data: StudyData) -> Section:
    """The most important parameters, and loss against each of them."""
    blocks = [*_importances(data.status), *_slices(data)]
    return Section("parameters", "Parameters", blocks)


def _importances(status: Status) -> Iterator[Block]:
    if not status.importances:
        yield Text(f"Importances are not known: {status.importances_unknown}.")
        return
    shown = status.importances[:_MOST_ROWS]
    rows = [
        Row(i.name, [Mark("", i.share, i.share - i.standard_error, i.share + i.standard_error)])
        for i in shown
    ]
    figure = Figure(
        RowPlot(
            "importance",
            "Importance of each parameter",
            f"{len(shown)} parameters, the most important first. The table has the values.",
            "share of the importance",
            rows,
            from_zero=True,
        ),
        "How much each parameter mattered for ending among the best tenth of the trials "
        "(PED-ANOVA), with its standard error by bootstrap over trials.",
    )
    table = Table(
        "Importance of each parameter"
        + (
            f": {_MOST_ROWS} of {len(status.importances)}"
            if status.importances[_MOST_ROWS:]
            else ""
        ),
        ("parameter", "share", "standard error"),
        [(i.name, f"{i.share:.2f}", f"{i.standard_error:.2f}") for i in shown],
        numbers=(1, 2),
    )
    yield Pair(figure, table)
    yield Text(
        "A share no larger than its error may well be zero. The sampler looked where losses were "
        "low, so a parameter that it settled early shows less than it matters.",
        aside=True,
    )


def _slices(data: StudyData) -> Iterator[Block]:
    importances = data.status.importances
    good = [r for r in data.best if r.params]
    if not good:
        return
    names = [i.name for i in importances] or list(good[0].params)
    figures: list[Figure] = []
    for name in names:
        if len(figures) == _MOST_SLICES:
            break
        figure = slice_figure(f"slice-{len(figures)}", name, good)
        if figure is not None:
            figures.append(figure)
    if figures:
        caption = (
            "Loss against the value of each parameter, in complete trials; the best tenth "
            "stand out." + ("" if importances else " The first parameters of the space.")
        )
        yield Figures("slices", "Loss against each parameter", figures, caption)


def slice_figure(identifier: str, name: str, runs: Sequence[Run]) -> Figure | None:
    """Loss against a parameter; None if it does not vary.

    ``runs`` has the best trials first.
    """
    having = [r for r in runs if name in r.params and r.loss is not None]
    if not having:
        return None
    title = plain(name, 40)
    labels, places = _places(name, having)
    if len(set(places)) < 2:
        return None
    log = bool(getattr(having[0].distributions.get(name), "log", False))
    if not log:
        places = _apart(places)
    losses = [r.loss or 0.0 for r in having]
    limit = loss_limit(losses)
    top = max(1, round(_TOP_SHARE * len(having)))
    points = list(zip(places, losses, strict=True))
    texts = [f"#{r.number}" for r in having]
    best = plain(setting(having[0].params[name]), 40)
    plot = Plot(
        identifier,
        f"Loss against {title}",
        f"{len(points)} complete trials; the best one has {best}.",
        label_axis(title, labels) if labels else axis_of(title, places, log),
        axis_of("loss", [loss for loss in losses if loss <= limit]),
        [
            Series("complete trials", "cloud", points[top:], texts[top:]),
            Series("the best tenth", "best", points[:top], texts[:top]),
        ],
        is_small=True,
    )
    return Figure(plot, f"{title}: best {best}")


def _places(name: str, runs: Sequence[Run]) -> tuple[list[str], list[float]]:
    """Labels of the choices, empty for a number; and for each trial its value or choice's place.

    There are no places if the values are neither numbers nor few choices.
    """
    distribution = runs[0].distributions.get(name)
    values = [r.params[name] for r in runs]
    if isinstance(distribution, CategoricalDistribution):
        known = [c for c in distribution.choices if c in values]
        if len(known) > _MOST_CHOICES or any(v not in known for v in values):
            return [], []
        return [plain(setting(c), 30) for c in known], [float(known.index(v)) for v in values]
    numbers = [x for v in values if (x := finite(v)) is not None]
    return [], numbers if len(numbers) == len(values) else []


def _apart(places: Sequence[float]) -> list[float]:
    """If there are few places, move each dot sideways a little so that all can be seen."""
    different = sorted(set(places))
    if len(different) > _MOST_CHOICES:
        return list(places)
    gap = min(b - a for a, b in pairwise(different))
    # By the golden ratio, which spreads any number of dots evenly and is not random.
    return [x + gap * _SPREAD * ((i * _GOLDEN) % 1 - 0.5) for i, x in enumerate(places)]
