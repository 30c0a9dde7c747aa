"""Plots as inline SVG."""

from __future__ import annotations

from markupsafe import Markup

from ..plots import Plot, RowPlot
from .axes import draw_plot
from .rows import draw_rows

__all__ = ["draw"]


def draw(plot: Plot | RowPlot) -> Markup:
    """A plot as an inline SVG element, with an accessible name."""
    return draw_rows(plot) if isinstance(plot, RowPlot) else draw_plot(plot)
