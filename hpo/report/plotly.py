"""Draw the plots of a document as Plotly's JSON, for the dashboard.

They are kept small, because every poll of the dashboard's page loads all of them.
"""

from __future__ import annotations

import json
import math
import random
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from .document import Document, Figures
from .plots import Axis, Line, Mark, Plot, RowPlot, Series
from .sanitize import plain
from .svg.scale import Scale, tick_texts

MOST_POINTS = 200  # of a series; of a longer one the lowest half and a sample of the rest
_DIGITS = 4
_SEED = 0
_COLUMNS = 3  # small plots in one row
_TICKS, _SMALL_TICKS = 6, 3  # on an axis, at most
_LOG_TICKS = 4
_HEIGHT_PX = 450  # the dashboard's room for a plot; a higher one covers its neighbours
_ROW_PX, _AROUND_PX = 26, 160
_TITLE_CHARS = 36  # in one line, as a plot has half of the page's width
_LEGEND_PX, _LINE_PX = 45, 20  # height of the legend, and of a line of the title
_LABEL_CHARS = 18  # of a label beside an axis
# Greys that can be read on light and dark pages, because plots do not know which it is.
_TEXT, _GRID = "#7d7d7d", "rgba(128,128,128,0.25)"
_CLEAR = "rgba(0,0,0,0)"
_LAYOUT: Mapping[str, Any] = {
    "paper_bgcolor": _CLEAR,
    "plot_bgcolor": _CLEAR,
    "font": {"color": _TEXT},
    "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"size": 11}},
    "hovermode": "closest",
}
_AXIS: Mapping[str, Any] = {
    "zeroline": False,
    "gridcolor": _GRID,
    "automargin": True,
    "nticks": _TICKS,
}
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
_SYMBOLS = ("circle", "circle-open", "diamond", "square-open")
_STYLES: Mapping[str, Mapping[str, Any]] = {
    "faint": {"mode": "markers", "marker": {"color": "#c7c7c7", "size": 5}},
    "cloud": {"mode": "markers", "marker": {"color": "#7f7f7f", "size": 5}},
    "best": {"mode": "markers", "marker": {"color": _COLOURS[0], "size": 8}},
    "steps": {
        "mode": "lines+markers",
        "marker": {"color": _COLOURS[0], "size": 7},
        "line": {"shape": "hv"},
    },
}
_THRESHOLD = {"dash": "dot", "width": 1}

Json = dict[str, Any]


def to_plotly(document: Document) -> dict[str, str]:
    """Every figure of the document as JSON, by its id; ids sort in the document's order."""
    found = {}
    for i, figure in enumerate(document.figures(), start=1):
        if isinstance(figure, Figures):
            name, drawn = figure.name, draw_grid(figure.title, [f.plot for f in figure.figures])
        else:
            name, drawn = figure.plot.name, draw(figure.plot)
        found[f"hpo-{i:02}-{name}"] = json.dumps(drawn, separators=(",", ":"), allow_nan=False)
    return found


def draw(plot: Plot | RowPlot) -> Json:
    """A figure with one plot."""
    if isinstance(plot, RowPlot):
        return _draw_rows(plot)
    layout = {
        **_LAYOUT,
        **_title(plot.title),
        "xaxis": _axis(plot.x),
        "yaxis": _axis(plot.y),
        "shapes": [*(_across(line) for line in plot.across if _holds(plot.y, line)),
                   *(_upright(line) for line in plot.upright if _holds(plot.x, line))],
    }  # fmt: skip
    return {"data": [_trace(s, plot) for s in plot.series if s.points], "layout": layout}


def draw_grid(title: str, plots: Sequence[Plot | RowPlot]) -> Json:
    """A figure with small plots side by side."""
    rows = -(-len(plots) // _COLUMNS)
    layout: Json = {
        **_LAYOUT,
        **_title(title),
        "font": {"color": _TEXT, "size": 10},
        "grid": {"rows": rows, "columns": _COLUMNS, "pattern": "independent",
                 "xgap": 0.3, "ygap": 0.45},
        "showlegend": False,
    }  # fmt: skip
    data = []
    for i, plot in enumerate(plots, start=1):
        if isinstance(plot, RowPlot):
            raise TypeError(f"{plot.name} has rows; only plots with two axes stand in a grid")
        suffix = "" if i == 1 else str(i)
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        across, upright = _axis(plot.x, is_small=True), _axis(plot.y, is_small=True)
        if (i - 1) % _COLUMNS:  # only the first plot of a row has a title at its axis
            del upright["title"]
        layout |= {f"xaxis{suffix}": across, f"yaxis{suffix}": upright}
        data += [{**_trace(s, plot), **axes} for s in plot.series if s.points]
    return {"data": data, "layout": layout}


def _trace(series: Series, plot: Plot) -> Json:
    kept = _thinned(series.points)
    trace: Json = {
        "type": "scatter",
        "name": series.name,
        "x": [_short(series.points[i][0]) for i in kept],
        "y": [_short(series.points[i][1]) for i in kept],
        **_STYLES[series.style],
    }
    if series.texts:
        trace["text"] = [plain(series.texts[i], 40) for i in kept]
    if series.errors:
        trace["error_y"] = {"type": "data", "array": [_short(series.errors[i]) for i in kept]}
    if series.style == "steps" and kept:  # extend the line to the end of the axis
        trace["x"].append(_short(plot.x.high))
        trace["y"].append(trace["y"][-1])
    return trace


def _thinned(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of at most `MOST_POINTS`, in order: the lowest half and a sample of the rest."""
    if len(points) <= MOST_POINTS:
        return list(range(len(points)))
    ranked = sorted(range(len(points)), key=lambda i: points[i][1])
    kept, rest = ranked[: MOST_POINTS // 2], ranked[MOST_POINTS // 2 :]
    return sorted(kept + random.Random(_SEED).sample(rest, MOST_POINTS - len(kept)))


def _title(text: str) -> Json:
    """The layout's title, and margins with room for it."""
    lines = textwrap.wrap(plain(text), _TITLE_CHARS)
    return {
        "title": {
            "text": "<br>".join(lines),
            "font": {"size": 15},
            "yref": "container",
            "y": 0.97,
            "yanchor": "top",
        },
        "margin": {"l": 50, "r": 15, "t": _LEGEND_PX + _LINE_PX * len(lines), "b": 45},
    }


def _axis(axis: Axis, is_small: bool = False) -> Json:
    shown: Json = {**_AXIS, "title": {"text": plain(axis.title)}}
    most = _LOG_TICKS
    if is_small:
        most = shown["nticks"] = _SMALL_TICKS
        shown["title"]["font"] = {"size": 11}
    if axis.log:
        ends = [_short(math.log10(axis.low)), _short(math.log10(axis.high))]
        # Within a decade Plotly writes so many tick labels that they overlap.
        ticks = Scale(axis.low, axis.high, 0.0, 1.0, log=True).ticks(most)
        texts = tick_texts(ticks, log=True)
        return {**shown, "type": "log", "range": ends, "tickvals": ticks, "ticktext": texts}
    shown["range"] = [_short(axis.low), _short(axis.high)]
    if axis.labels:
        places = list(range(len(axis.labels)))
        texts = [plain(label, _LABEL_CHARS) for label in axis.labels]
        shown |= {"tickvals": places, "ticktext": texts}
    return shown


def _draw_rows(plot: RowPlot) -> Json:
    names = [plain(row.name, 40) for row in plot.rows]
    data = []
    for order, name in enumerate(plot.series or ("",)):
        marks = [
            (place, mark)
            for place, row in enumerate(plot.rows)
            for mark in row.marks
            if not plot.series or mark.series == name
        ]
        data.append(_row_trace(name, marks, order % len(_COLOURS)))
    layout = {
        **_LAYOUT,
        **_title(plot.title),
        "xaxis": {
            **_AXIS,
            "title": {"text": plain(plot.axis)},
            "rangemode": "tozero" if plot.from_zero else "normal",
        },
        "yaxis": {
            **_AXIS,
            "autorange": "reversed",
            "tickvals": list(range(len(names))),
            "ticktext": names,
        },
        "shapes": [_upright(line) for line in plot.lines],
        "height": min(_HEIGHT_PX, _AROUND_PX + _ROW_PX * len(names)),
        "showlegend": bool(plot.series),
    }
    return {"data": data, "layout": layout}


def _row_trace(name: str, marks: Sequence[tuple[int, Mark]], order: int) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name, 40),
        "x": [_short(m.value) for _, m in marks],
        "y": [place for place, _ in marks],
        "marker": {"color": _COLOURS[order], "symbol": _SYMBOLS[order], "size": 8},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_short((m.high or m.value) - m.value) for _, m in marks],
            "arrayminus": [
                _short(m.value - (m.value if m.low is None else m.low)) for _, m in marks
            ],
        },
    }


def _holds(axis: Axis, line: Line) -> bool:
    return axis.low <= line.at <= axis.high


def _across(line: Line) -> Json:
    ends = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "line": _THRESHOLD}
    return {**ends, "y0": line.at, "y1": line.at, "label": _label(line)}


def _upright(line: Line) -> Json:
    ends = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": _THRESHOLD}
    return {**ends, "x0": line.at, "x1": line.at, "label": _label(line)}


def _label(line: Line) -> Json:
    return {"text": plain(line.label, 40), "textposition": "end", "font": {"size": 10}}


def _short(value: float) -> float | None:
    """A number rounded for a plot; None if it is not finite, which JSON can't express."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
