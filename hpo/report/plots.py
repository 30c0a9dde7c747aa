"""Plots as plain data, computed once and drawn as SVG or by Plotly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# faint: trials that do not count; cloud: all others; best: marks that stand out;
# steps: such marks, joined by a line that keeps each value until the next one.
Style = Literal["faint", "cloud", "best", "steps"]


@dataclass(frozen=True)
class Axis:
    """An axis: a range of numbers, or ``labels`` at 0, 1, 2 and so on."""

    title: str
    low: float
    high: float
    log: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Args:
        points: (x, y); points outside of the axes are not drawn.
        texts: a text for each point, such as its trial; or empty.
        errors: half the length of each point's vertical error bar; or empty.
    """

    name: str
    style: Style
    points: Sequence[tuple[float, float]]
    texts: Sequence[str] = ()
    errors: Sequence[float] = ()


@dataclass(frozen=True)
class Line:
    """A threshold: a value of an axis that is marked across the whole plot."""

    at: float
    label: str


@dataclass(frozen=True)
class Plot:
    """Series on two axes.

    Args:
        name: identifies the plot within its document.
        description: what the plot shows, for people who can't see it.
        across: thresholds on the vertical axis.
        upright: thresholds on the horizontal axis.
        is_small: whether it is one of several small plots.
    """

    name: str
    title: str
    description: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    across: Sequence[Line] = ()
    upright: Sequence[Line] = ()
    is_small: bool = False


@dataclass(frozen=True)
class Mark:
    """A value in a row, of one series, with its interval if it has one."""

    series: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """A label with its marks."""

    name: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class RowPlot:
    """Labelled rows from top to bottom, their marks along one axis.

    Args:
        axis: the title of the axis.
        series: names of the series that marks belong to; empty if there is only one.
        lines: thresholds across all rows.
        from_zero: whether the axis begins at zero.
    """

    name: str
    title: str
    description: str
    axis: str
    rows: Sequence[Row]
    series: Sequence[str] = ()
    lines: Sequence[Line] = ()
    from_zero: bool = False


def axis_of(title: str, values: Sequence[float], log: bool = False) -> Axis:
    """An axis with room for all values."""
    if log and min(values) > 0:
        low, high = min(values), max(values)
        room = max((high / low) ** 0.05, 1.02)
        return Axis(title, low / room, high * room, log=True)
    return Axis(title, *around(values))


def label_axis(title: str, labels: Sequence[str]) -> Axis:
    """An axis with a place for each label."""
    return Axis(title, -0.5, len(labels) - 0.5, labels=labels)


def around(values: Sequence[float], margin: float = 0.05) -> tuple[float, float]:
    """A range around all values with a margin; it is never empty."""
    low, high = min(values), max(values)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return low - room, high + room
