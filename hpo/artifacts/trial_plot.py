"""A plot of one trial: its learning curves, and its losses by the time t."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from ..trial.record import Call

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (9.0, 3.4)
_DPI = 100
_COLOURS = 128  # size of the PNG's palette; a third of the bytes of full colour
_MOST_NAMED = 8  # with more lines the plot has no legend


def plot_trial(calls: Sequence[Call]) -> bytes:
    """A PNG of a trial's calls."""
    # Imported late, as it takes half a second. Not pyplot, which keeps figures and needs a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    learning, by_time = figure.subplots(1, 2)
    for call in calls:
        _line(learning, call, call.curve)
        _line(by_time, call, call.per_t_bin)
    learning.set(title="Learning curve", xlabel="share of the run", ylabel="training loss")
    by_time.set(
        title="Loss by time", xlabel="t (0: data, 1: noise)", ylabel="loss, unseen drawings"
    )
    for axes in (learning, by_time):
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    if 1 <= len(calls) <= _MOST_NAMED:
        figure.legend(*by_time.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    drawn, out = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    few = Image.open(drawn).convert("RGB").quantize(_COLOURS)
    few.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _line(axes: Axes, call: Call, values: Sequence[float | None]) -> None:
    # Each value is a mean over a part of the axis, so it is drawn in the part's middle.
    middles = [(i + 0.5) / len(values) for i in range(len(values))]
    known = [math.nan if value is None else value for value in values]
    axes.plot(middles, known, marker=".", markersize=4, linewidth=1.2, label=call.instance)
