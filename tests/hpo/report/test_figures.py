"""Plots and rows: marks are where their values are, and none is outside."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from hpo.report.plots import Axis, Line, Mark, Row, RowPlot, axis_of, label_axis
from hpo.report.svg import draw
from hpo.report.svg.axes import Axes
from hpo.report.svg.drawing import Drawing


def read(markup: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(str(markup))


def places(svg: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    """Of all dots of a class."""
    found = []
    for path in svg.iter("path"):
        if kind in path.get("class", "").split():
            found += re.findall(r"M([-\d.]+) ([-\d.]+)h", path.get("d", ""))
    return [(float(x), float(y)) for x, y in found]


def test_a_drawing_has_a_name_and_no_style_of_its_own() -> None:
    drawing = Drawing("fig", "A title", "What is seen", 100, 50)
    drawing.line((0, 0), (10, 10), "grid")
    drawing.circle((1, 2), 3, "solid")
    drawing.diamond((1, 2), 3, "solid")
    drawing.rectangle((1, 2), -3, 3, "hollow")
    svg = read(drawing.markup())
    assert svg.get("role") == "img"
    ids = {e.get("id"): e.text for e in svg if e.get("id")}
    assert svg.get("aria-labelledby") == "fig-title fig-desc"
    assert ids == {"fig-title": "A title", "fig-desc": "What is seen"}
    assert not [e for e in svg.iter() if e.get("style") or e.get("onload")]
    (rect,) = svg.iter("rect")
    assert rect.get("width") == "0"


def test_equal_dots_are_one_and_nothing_is_no_element() -> None:
    drawing = Drawing("fig", "t", "d", 100, 50)
    drawing.dots([(1, 2), (1.01, 2), (3, 4)], "first")
    drawing.dots([], "second")
    drawing.path([], "second")
    svg = read(drawing.markup())
    assert places(svg, "first") == [(1, 2), (3, 4)]
    assert not places(svg, "second")
    assert len(list(svg.iter("path"))) == 1


def test_long_words_are_cut_to_their_room() -> None:
    drawing = Drawing("fig", "t", "d", 100, 50)
    drawing.text((0, 0), "abcdefghijklmnop", room=66)
    (text,) = read(drawing.markup()).iter("text")
    assert text.text == "abcdefghi…"


def test_a_plots_dots_are_at_their_values_and_those_outside_are_left_out() -> None:
    plot = Axes("p", "t", "d", Axis("x", 0.0, 10.0), Axis("y", 0.0, 1.0))
    plot.dots([(0, 0), (10, 1), (5, 0.5), (11, 0.5), (5, 2)], "first")
    plot.across(3.0, "out", "threshold")
    plot.upright(-1.0, "out", "threshold")
    plot.whisker(5, -1.0, 0.5, "whisker")
    svg = read(plot.markup())
    (left, bottom), (right, top), middle = places(svg, "first")
    assert left < right
    assert top < bottom
    assert middle == pytest.approx(((left + right) / 2, (top + bottom) / 2))
    assert "out" not in [t.text for t in svg.iter("text")]
    (whisker,) = [p for p in svg.iter("path") if p.get("class") == "whisker"]
    assert f" {bottom:g}L" in whisker.get("d", "")


def test_steps_stay_until_the_next_point_and_go_on_to_the_right() -> None:
    plot = Axes("p", "t", "d", Axis("x", 0.0, 10.0), Axis("y", 0.0, 1.0))
    plot.steps([(0, 1.0), (5, 0.5)], "line")
    plot.dots([(0, 1.0), (5, 1.0), (5, 0.5), (10, 0.5)], "first")
    svg = read(plot.markup())
    (line,) = [p for p in svg.iter("path") if p.get("class") == "line"]
    corners = [tuple(map(float, c.split())) for c in line.get("d", "")[1:].split("L")]
    assert corners == places(svg, "first")


def test_an_axis_of_labels_and_one_of_logarithms() -> None:
    plot = Axes("p", "t", "d", label_axis("x", ["a", "b"]), axis_of("y", [1.0, 1.0]))
    plot.dots([(0, 1.0), (1, 1.0)], "first")
    svg = read(plot.markup())
    assert len(places(svg, "first")) == 2
    assert {"a", "b", "x", "y"} <= {t.text for t in svg.iter("text")}
    assert axis_of("x", [0.001, 0.1], log=True).low == pytest.approx(0.001 / 100**0.05)
    assert not axis_of("x", [0.0, 0.1], log=True).log  # there is no logarithm of zero


def test_rows_have_their_marks_in_order_and_by_form() -> None:
    rows = [
        Row("one", [Mark("a", 1.0, 0.9, 1.1), Mark("b", 2.0)]),
        Row("two", [Mark("b", 3.0)]),
    ]
    svg = read(draw(RowPlot("r", "t", "d", "loss", rows, ["a", "b"], [Line(2.0, "line")])))
    words = [t.text for t in svg.iter("text")]
    assert {"one", "two", "a", "b", "loss", "line"} <= set(words)
    solid = [float(c.get("cx", "")) for c in svg.iter("circle") if "solid" in c.get("class", "")]
    hollow = [float(c.get("cx", "")) for c in svg.iter("circle") if "hollow" in c.get("class", "")]
    # The first of each is the legend's.
    assert len(solid) == 2
    assert solid[1] < hollow[1] < hollow[2]
    assert len([p for p in svg.iter("path") if "whisker" in p.get("class", "")]) == 1


def test_rows_from_zero_cut_intervals_there_and_nothing_is_drawn_of_no_rows() -> None:
    row = Row("one", [Mark("", 0.1, -0.5, 0.7)])
    svg = read(draw(RowPlot("r", "t", "d", "share", [row], from_zero=True)))
    (whisker,) = [p for p in svg.iter("path") if "whisker" in p.get("class", "")]
    start = float(whisker.get("d", "M0 ")[1:].split()[0])
    (axis,) = [p for p in svg.iter("path") if p.get("class") == "axis"]
    assert start == float(axis.get("d", "M0 ")[1:].split()[0])
    assert read(draw(RowPlot("r", "t", "d", "share", []))).get("role") == "img"
