"""A plot as plain data, computed once; SVG and Plotly are two ways to draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# faint: trials that do not count; cloud: all others; best: marks that stand out;
# steps: such marks with a line that keeps each value until the next one.
Style = Literal["faint", "cloud", "best", "steps"]


@dataclass(frozen=True)
class Axis:
    """A range of numbers, or places for ``labels``: the first is at 0, the next at 1."""

    title: str
    low: float
    high: float
    log: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Args:
        points: (x, y); those outside of the axes are not drawn.
        texts: of each point, such as the number of its trial; or none.
        errors: half the length of each point's vertical error bar; or none.
    """

    name: str
    style: Style
    points: Sequence[tuple[float, float]]
    texts: Sequence[str] = ()
    errors: Sequence[float] = ()


@dataclass(frozen=True)
class Line:
    """A value of an axis that is marked through the whole plot."""

    at: float
    label: str


@dataclass(frozen=True)
class Plot:
    """Series on two axes.

    Args:
        name: identifies the plot within its document.
        description: what is to be seen, for who can't see it.
        across: thresholds on the vertical axis.
        upright: thresholds on the horizontal axis.
        is_small: it stands beside others of its kind.
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
    """A value of one series in a row, with its interval if it has one."""

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
        series: what the marks are of; none: all are of one thing.
        lines: values that are marked across all rows.
        from_zero: the axis begins at zero.
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
    """An axis that has room for all values."""
    if log and min(values) > 0:
        low, high = min(values), max(values)
        room = max((high / low) ** 0.05, 1.02)
        return Axis(title, low / room, high * room, log=True)
    return Axis(title, *around(values))


def label_axis(title: str, labels: Sequence[str]) -> Axis:
    """An axis with a place for each label."""
    return Axis(title, -0.5, len(labels) - 0.5, labels=labels)


def around(values: Sequence[float], margin: float = 0.05) -> tuple[float, float]:
    """A range that holds all values with some room; never empty."""
    low, high = min(values), max(values)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return low - room, high + room
