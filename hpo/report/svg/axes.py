"""A plot with two axes as SVG: dots, steps, error bars and thresholds."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from ..plots import Axis, Plot
from .drawing import FONT_PX, Drawing, Point
from .scale import Scale, tick_texts

WIDE, HIGH = 400, 260  # pixels of a figure
_SMALL_WIDE, _SMALL_HIGH = 300, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 22, 40
_CLOUDS = {"faint": "faint", "cloud": "second"}  # style sheet's classes by style


class Axes:
    """A drawing in which marks are placed by values; marks outside of the axes are not drawn."""

    def __init__(
        self,
        name: str,
        title: str,
        description: str,
        x: Axis,
        y: Axis,
        width: int = WIDE,
        height: int = HIGH,
    ) -> None:
        self._drawing = Drawing(name, title, description, width, height)
        self._x = Scale(x.low, x.high, _LEFT, width - _RIGHT, x.log)
        self._y = Scale(y.low, y.high, height - _BOTTOM, _TOP, y.log)
        self._frame(x, y)

    def markup(self) -> Markup:
        return self._drawing.markup()

    def dots(self, points: Sequence[Point], kind: str) -> None:
        self._drawing.dots([self._place(p) for p in points if self._holds(p)], kind)

    def steps(self, points: Sequence[Point], kind: str) -> None:
        """A step line: it keeps each value until the next point, the last one to the right end."""
        path: list[Point] = []
        for x, y in points:
            x, y = self._x(x), self._y(min(y, self._y.high))
            path += [(x, path[-1][1]), (x, y)] if path else [(x, y)]
        if path:
            path.append((self._x.end, path[-1][1]))
        self._drawing.path(path, kind)

    def whisker(self, x: float, low: float, high: float, kind: str) -> None:
        """A vertical interval, clipped to the axes."""
        low, high = max(low, self._y.low), min(high, self._y.high)
        if low < high and self._x.holds(x):
            self._drawing.line(self._place((x, low)), self._place((x, high)), kind)

    def across(self, y: float, label: str, kind: str) -> None:
        """A horizontal line with a label at its right end."""
        if self._y.holds(y):
            at = self._y(y)
            self._drawing.line((self._x.start, at), (self._x.end, at), kind)
            self._drawing.text((self._x.end, at - 3), label, "muted", "end")

    def upright(self, x: float, label: str, kind: str) -> None:
        """A vertical line with a label at its top."""
        if self._x.holds(x):
            at = self._x(x)
            self._drawing.line((at, self._y.start), (at, self._y.end), kind)
            self._drawing.text((at - 3, self._y.end + FONT_PX), label, "muted", "end")

    def _holds(self, point: Point) -> bool:
        return self._x.holds(point[0]) and self._y.holds(point[1])

    def _place(self, point: Point) -> Point:
        return self._x(point[0]), self._y(point[1])

    def _frame(self, x: Axis, y: Axis) -> None:
        draw, left, bottom = self._drawing, self._x.start, self._y.start
        ticks = self._y.ticks(6)
        for tick, text in zip(ticks, tick_texts(ticks, y.log), strict=True):
            draw.line((left, self._y(tick)), (self._x.end, self._y(tick)), "grid")
            draw.text((left - 5, self._y(tick) + 4), text, anchor="end")
        if x.labels:
            room = (self._x.end - left) / len(x.labels)
            for i, label in enumerate(x.labels):
                draw.text((self._x(i), bottom + 15), label, anchor="middle", room=room)
        else:
            ticks = self._x.ticks(max(3, draw.width // 70))
            for tick, text in zip(ticks, tick_texts(ticks, x.log), strict=True):
                draw.line((self._x(tick), bottom), (self._x(tick), bottom + 4), "axis")
                draw.text((self._x(tick), bottom + 15), text, anchor="middle")
        draw.line((left, bottom), (self._x.end, bottom), "axis")
        draw.text(((left + self._x.end) / 2, draw.height - 6), x.title, anchor="middle")
        draw.text((4, 13), y.title)


def draw_plot(plot: Plot) -> Markup:
    """A `Plot` as inline SVG: clouds first, then thresholds, then marks that stand out."""
    size = (_SMALL_WIDE, _SMALL_HIGH) if plot.is_small else (WIDE, HIGH)
    axes = Axes(plot.name, plot.title, plot.description, plot.x, plot.y, *size)
    for series in plot.series:
        if series.style in _CLOUDS:
            axes.dots(series.points, _CLOUDS[series.style])
    for line in plot.across:
        axes.across(line.at, line.label, "threshold")
    for line in plot.upright:
        axes.upright(line.at, line.label, "threshold")
    for series in plot.series:
        if series.style in _CLOUDS:
            continue
        if series.style == "steps":
            axes.steps(series.points, "line first")
        for (x, y), error in zip(series.points, series.errors, strict=False):
            axes.whisker(x, y - error, y + error, "whisker first")
        axes.dots(series.points, "large first")
    return axes.markup()
