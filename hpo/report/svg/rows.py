"""Draw a figure of labelled rows with marks along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from markupsafe import Markup

from ..plots import Line, RowPlot, around
from ..sanitize import plain
from .drawing import Drawing, text_width
from .scale import Scale, tick_texts

WIDE = 400
_LABEL_PX = 140  # greatest width of a row's label
_ROW_PX, _APART_PX = 18, 7  # height of a row with one mark, and of each further mark
_BOTTOM, _LEGEND_PX = 40, 20
_RADIUS = 4.0

# Marks differ by form, too, so that nobody has to tell colours apart.
Shape = Literal["first", "second", "third", "fourth"]


def draw_rows(plot: RowPlot) -> Markup:
    """A `RowPlot` as inline SVG."""
    series = plot.series
    bounds = [
        bound for row in plot.rows for m in row.marks for bound in (m.value, m.low, m.high)
        if bound is not None
    ]  # fmt: skip
    low, high = around(bounds or [0.0, 1.0])
    step = _ROW_PX + _APART_PX * max(0, len(series) - 1)
    top = (_LEGEND_PX if series else 0) + (_LEGEND_PX if plot.lines else 4)
    height = top + step * len(plot.rows) + _BOTTOM
    drawing = Drawing(plot.name, plot.title, plot.description, WIDE, height)
    left = min(_LABEL_PX, 10 + max((text_width(plain(r.name)) for r in plot.rows), default=0))
    scale = Scale(0.0 if plot.from_zero else low, high, left, WIDE - 12)
    bottom = height - _BOTTOM
    ticks = scale.ticks(5)
    for tick, text in zip(ticks, tick_texts(ticks), strict=True):
        drawing.line((scale(tick), top), (scale(tick), bottom), "grid")
        drawing.text((scale(tick), bottom + 15), text, anchor="middle")
    _draw_lines(drawing, scale, plot.lines, top, bottom)
    _draw_legend(drawing, series)
    for i, row in enumerate(plot.rows):
        middle = top + step * (i + 0.5)
        drawing.text((left - 8, middle + 4), row.name, anchor="end", room=left - 10)
        for mark in row.marks:
            order = series.index(mark.series) if mark.series in series else 0
            y = middle + _APART_PX * (order - max(0, len(series) - 1) / 2)
            kind = _kind(order)
            if mark.low is not None and mark.high is not None:
                start = max(mark.low, scale.low)
                drawing.line((scale(start), y), (scale(mark.high), y), f"whisker {kind}")
            _draw_mark(drawing, (scale(mark.value), y), order)
    drawing.line((left, bottom), (WIDE - 12, bottom), "axis")
    drawing.text(((left + WIDE - 12) / 2, height - 6), plot.axis, anchor="middle")
    return drawing.markup()


def _draw_lines(
    drawing: Drawing, scale: Scale, lines: Sequence[Line], top: float, bottom: float
) -> None:
    free = -1.0  # right end of the labels so far
    for line in sorted(lines, key=lambda one: one.at):
        if scale.holds(line.at):
            at = scale(line.at)
            drawing.line((at, top), (at, bottom), "threshold")
            half = text_width(line.label) / 2
            if at - half > free:
                drawing.text((at, top - 5), line.label, "muted", "middle")
                free = at + half + 4


def _draw_legend(drawing: Drawing, series: Sequence[str]) -> None:
    x = 8.0
    for order, word in enumerate(series):
        room = min(text_width(word) + 2, WIDE / max(1, len(series)) - 16)
        _draw_mark(drawing, (x, 9), order)
        drawing.text((x + 8, 13), word, room=room)
        x += 8 + room + 12


def _kind(order: int) -> str:
    kinds: tuple[Shape, ...] = ("first", "second", "third", "fourth")
    return kinds[min(order, len(kinds) - 1)]


def _draw_mark(drawing: Drawing, at: tuple[float, float], order: int) -> None:
    kind = _kind(order)
    if order == 0:
        drawing.circle(at, _RADIUS, f"solid {kind}")
    elif order == 1:
        drawing.circle(at, _RADIUS - 0.5, f"hollow {kind}")
    elif order == 2:
        drawing.diamond(at, _RADIUS, f"solid {kind}")
    else:
        drawing.rectangle((at[0] - 3, at[1] - 3), 6, 6, f"hollow {kind}")
