"""The document's plots as Plotly's JSON: the same values as in the page, few enough for a poll."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from hpo.report.contents import report_of
from hpo.report.data import StudyData
from hpo.report.document import Figures
from hpo.report.plotly import MOST_POINTS, draw, draw_grid, to_plotly
from hpo.report.plots import Axis, Line, Mark, Plot, Row, RowPlot, Series

Make = Callable[..., StudyData]
HOSTILE = '</script><b onclick="x">\x00\u202e'


def plot_of(*series: Series, **more: Any) -> Plot:
    x, y = Axis("x", 0.0, 10.0), Axis("y", 0.0, 1.0)
    return Plot(**{"name": "p", "title": "t", "description": "d", "x": x, "y": y,
                   "series": series, **more})  # fmt: skip


def test_every_figure_of_the_report_is_a_plot_of_the_dashboard(
    make_data: Make, trials: list[FrozenTrial], confirmed: dict[str, Any]
) -> None:
    document = report_of(make_data(trials, confirmed))
    plots = to_plotly(document)
    assert list(plots) == sorted(plots)
    assert [re.sub(r"hpo-\d\d-", "", name) for name in plots] == [
        "candidates", "instances-unseen", "instances-searched", "best-so-far", "loss-seconds",
        "importance", "slices", "augmentations", "measured",
    ]  # fmt: skip
    for figure, text in zip(document.figures(), plots.values(), strict=True):
        title = figure.title if isinstance(figure, Figures) else figure.plot.title
        shown = json.loads(text)
        lines = shown["layout"]["title"]["text"].split("<br>")
        assert " ".join(lines) == title and max(map(len, lines)) <= 36
        assert shown["layout"].get("height", 450) <= 450  # which the dashboard has for it
        assert shown["data"]


def test_many_trials_make_small_plots_that_keep_the_best(
    make_data: Make, many: list[FrozenTrial]
) -> None:
    plots = {
        name[7:]: json.loads(text) for name, text in to_plotly(report_of(make_data(many))).items()
    }
    for name, plot in plots.items():
        assert len(json.dumps(plot)) < 60_000, name
        assert all(len(trace["y"]) <= MOST_POINTS + 1 for trace in plot["data"])
    good = [t for t in many if t.state == TrialState.COMPLETE and t.value]
    best = min(t.value for t in good if t.value)
    traces = {trace["name"]: trace for trace in plots["best-so-far"]["data"]}
    line, cloud = traces["best so far"], traces["complete trials"]
    assert min(cloud["y"]) == line["y"][-1] == pytest.approx(best, rel=1e-3)
    assert line["y"] == sorted(line["y"], reverse=True)
    assert f"#{min(good, key=lambda t: t.value or 1).number}" in cloud["text"]


def test_axes_marks_and_thresholds_are_where_they_are_in_the_page() -> None:
    plot = plot_of(
        Series("all", "cloud", [(1.0, 0.5), (2.0, 0.25)], ["#1", "#2"]),
        Series("none", "faint", []),
        Series("groups", "best", [(0.0, 0.5)], ["3 trials"], [0.125]),
        x=Axis("value", -0.5, 1.5, labels=["a", HOSTILE]),
        y=Axis("loss", 0.1, 10.0, log=True),
        across=[Line(0.5, "1 point"), Line(99.0, "out")],
        upright=[Line(1.0, "allowed")],
    )
    shown = draw(plot)
    cloud, groups = shown["data"]
    assert (cloud["x"], cloud["y"], cloud["text"]) == ([1.0, 2.0], [0.5, 0.25], ["#1", "#2"])
    assert groups["error_y"] == {"type": "data", "array": [0.125]}
    assert shown["layout"]["yaxis"]["range"] == [-1.0, 1.0]  # powers of ten
    assert shown["layout"]["xaxis"]["tickvals"] == [0, 1]
    assert "\x00" not in str(shown) and "\u202e" not in str(shown)
    assert [s["label"]["text"] for s in shown["layout"]["shapes"]] == ["1 point", "allowed"]


def test_rows_go_from_top_to_bottom_with_their_intervals() -> None:
    rows = [
        Row("one", [Mark("a", 1.0, 0.5, 1.25), Mark("b", 2.0)]),
        Row("two", [Mark("b", 3.0)]),
    ]
    shown = draw(RowPlot("r", "t", "d", "loss", rows, ["a", "b"], [Line(2.0, "line")]))
    first, second = shown["data"]
    assert (first["x"], first["y"]) == ([1.0], [0])
    assert first["error_x"]["array"] == [0.25]
    assert first["error_x"]["arrayminus"] == [0.5]
    assert (second["x"], second["y"]) == ([2.0, 3.0], [0, 1])
    assert shown["layout"]["yaxis"]["ticktext"] == ["one", "two"]
    assert shown["layout"]["yaxis"]["autorange"] == "reversed"


def test_many_rows_share_the_height_that_there_is() -> None:
    rows = [Row(f"rune {i}", [Mark("", float(i))]) for i in range(60)]
    assert draw(RowPlot("r", "t", "d", "loss", rows))["layout"]["height"] == 450
    assert draw(RowPlot("r", "t", "d", "loss", rows[:3]))["layout"]["height"] < 450


def test_small_plots_stand_in_a_grid_with_axes_of_their_own() -> None:
    plots = [plot_of(Series("s", "cloud", [(float(i), 0.5)])) for i in range(4)]
    shown = draw_grid("title", plots)
    assert shown["layout"]["grid"]["rows"] == 2
    assert [trace["xaxis"] for trace in shown["data"]] == ["x", "x2", "x3", "x4"]
    assert {"xaxis", "yaxis4"} <= set(shown["layout"])
    assert ["title" in shown["layout"][f"yaxis{i}"] for i in ("", 2, 3, 4)] == [1, 0, 0, 1]


def test_what_is_not_finite_is_left_out_of_the_json() -> None:
    shown = draw(plot_of(Series("s", "cloud", [(1.0, float("nan")), (2.0, 0.5)])))
    assert shown["data"][0]["y"] == [None, 0.5]


def test_a_logarithmic_axis_has_few_ticks_within_its_range() -> None:
    for low, high in ((0.0009, 0.003), (1e-4, 1e-2), (2.0, 7.0)):
        axis = draw(plot_of(x=Axis("lr", low, high, log=True)))["layout"]["xaxis"]
        assert 2 <= len(axis["tickvals"]) <= 4
        assert all(low <= value <= high for value in axis["tickvals"])
        assert [float(text) for text in axis["ticktext"]] == axis["tickvals"]
