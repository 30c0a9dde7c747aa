"""Plots of a study for the dashboard, as Plotly's JSON: small, because every poll loads them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from ..analysis.groups import AUGMENTATIONS, Group, outcomes
from ..problem.points import POINTS
from ..study.config import StudyConfig
from ..trial.ranking import best_trials, is_feasible

Figure = dict[str, Any]

MOST_POINTS = 200  # of a cloud; of more trials, the best ones and a sample of the others
_MOST_SLICES = 6
_DIGITS = 4
_SEED = 0
_COLOURS = ("#1f77b4", "#d62728", "#7f7f7f", "#2ca02c")


def study_figures(
    config: StudyConfig, trials: Sequence[FrozenTrial], parameters: Sequence[str]
) -> dict[str, Figure]:
    """Those plots for which there is something to show, by their ids, in order.

    Args:
        trials: the study's finished ones.
        parameters: the ones that matter, the most important first.
    """
    makers: dict[str, Callable[[], Figure | None]] = {
        "hpo-1-compute": lambda: best_by_compute(config, trials),
        "hpo-2-seconds": lambda: loss_by_seconds(config, trials),
        "hpo-3-slices": lambda: slices(trials, parameters),
        "hpo-4-runes": lambda: loss_by_instance(trials),
        "hpo-5-augmentations": lambda: by_augmentation(trials),
    }
    made = {name: make() for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def best_by_compute(config: StudyConfig, trials: Sequence[FrozenTrial]) -> Figure | None:
    """The best feasible loss so far against the hours that all trials took together."""
    ended = [t for t in trials if t.datetime_complete is not None and t.duration is not None]
    ended.sort(key=lambda t: (t.datetime_complete, t.number))
    hours, best = 0.0, math.inf
    cloud: list[tuple[float, float, int]] = []
    steps: list[tuple[float, float, int]] = []
    for trial in ended:
        assert trial.duration is not None
        hours += trial.duration.total_seconds() / 3600
        if trial.state != TrialState.COMPLETE or trial.value is None or not is_feasible(trial):
            continue
        cloud.append((hours, trial.value, trial.number))
        if trial.value < best:
            best = trial.value
            steps.append((hours, best, trial.number))
    if not steps:
        return None
    line = [*steps, (hours, best, steps[-1][2])]
    return _figure(
        "Best so far against compute",
        [
            _points("complete trials", _thinned(cloud, key=lambda p: p[1]), colour=2),
            {**_points("best so far", _thinned(line), colour=0), "mode": "lines", **_STEPS},
        ],
        x="hours of all trials together",
        y="loss",
        lines=_thresholds(config, [p[1] for p in cloud]),
    )


def loss_by_seconds(config: StudyConfig, trials: Sequence[FrozenTrial]) -> Figure | None:
    """Loss against the longest call, feasible trials and others, and the best for each time."""
    groups: dict[bool, list[tuple[float, float, int]]] = {True: [], False: []}
    for trial in trials:
        seconds = trial.user_attrs.get("longest_call_s")
        calls = trial.user_attrs.get("instances")
        if seconds is None or not calls or trial.value is None or not math.isfinite(trial.value):
            continue
        # A slow trial ends early, and its value is of the instances that it met.
        if trial.state == TrialState.COMPLETE or not is_feasible(trial):
            groups[is_feasible(trial)].append((seconds, trial.value, trial.number))
    if not groups[True]:
        return None
    front: list[tuple[float, float, int]] = []
    for point in sorted(groups[True]):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    limit = {"type": "line", "x0": config.feasible_s, "x1": config.feasible_s}
    data = [
        _points("feasible", _thinned(groups[True], key=lambda p: p[1]), colour=0),
        {**_points("the best in its time", _thinned(front), colour=3), "mode": "lines", **_STEPS},
    ]
    if groups[False]:
        data.append(_points("too slow", _thinned(groups[False]), colour=2))
    return _figure(
        f"Loss against the longest call; {config.feasible_s:g} s are allowed",
        data,
        x="seconds of the longest call",
        y="loss",
        lines=[{**limit, "y0": 0, "y1": 1, "yref": "paper", "line": {"dash": "dot"}}],
    )


def slices(trials: Sequence[FrozenTrial], parameters: Sequence[str]) -> Figure | None:
    """The loss against each of the parameters that matter, side by side."""
    good = best_trials(trials)
    shown = [p for p in parameters if len({str(t.params[p]) for t in good if p in t.params}) > 1]
    shown = shown[:_MOST_SLICES]
    if not shown:
        return None
    data: list[Figure] = []
    axes: Figure = {"grid": {"rows": -(-len(shown) // 3), "columns": 3, "pattern": "independent"}}
    for i, name in enumerate(shown, start=1):
        has = [t for t in good if name in t.params]
        points = [(t.params[name], float(t.value or 0.0), t.number) for t in has]
        suffix = "" if i == 1 else str(i)
        distribution = has[0].distributions[name]
        axis: Figure = {"title": {"text": name}}
        if isinstance(distribution, CategoricalDistribution):
            axis["type"] = "category"
            points = [(str(x), y, number) for x, y, number in points]
        elif getattr(distribution, "log", False):
            axis |= {"type": "log", "nticks": 4, "tickangle": 0}
        cloud = _points(name, _thinned(points, key=lambda p: p[1]), colour=0)
        data.append({**cloud, "xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": False})
        axes[f"xaxis{suffix}"] = axis
    figure = _figure("The parameters that matter: complete trials", data)
    figure["layout"].update(axes, height=320 * axes["grid"]["rows"])
    return figure


def loss_by_instance(trials: Sequence[FrozenTrial]) -> Figure | None:
    """The loss on each instance: of the best trial, the first one, and all others' middle half."""
    good = best_trials(trials)
    labels = [call["instance"] for call in good[0].user_attrs.get("instances", ())] if good else []
    if not labels:
        return None
    by_label: dict[str, list[float]] = {label: [] for label in labels}
    for trial in good:
        for call in trial.user_attrs.get("instances", ()):
            by_label.get(call["instance"], []).append(call["loss"])
    quartiles = [_quartiles(sorted(by_label[label])) for label in labels]
    data = [
        {
            "type": "box",
            "name": "complete trials",
            "x": labels,
            **{key: [_short(q[i]) for q in quartiles] for i, key in enumerate(_BOX)},
            "marker": {"color": _COLOURS[2]},
        }
    ]
    first = min(good, key=lambda t: t.number)
    chosen = [(good[0], "best", 0), (first, "first", 1)]
    for trial, word, colour in chosen if first is not good[0] else chosen[:1]:
        calls = {c["instance"]: c for c in trial.user_attrs.get("instances", ())}
        known = [calls[label] for label in labels if label in calls]
        points = [(c["instance"], c["loss"], trial.number) for c in known]
        errors = [_short(c["standard_error"]) for c in known]
        marks = _points(f"{word}: trial {trial.number}", points, colour)
        data.append({**marks, "error_y": {"type": "data", "array": errors}})
    return _figure("Loss on each instance", data, x="rune/split", y="loss on unseen drawings")


def by_augmentation(trials: Sequence[FrozenTrial]) -> Figure | None:
    """How trials with little, middling and much of each augmentation came out."""
    found = {name: outcomes(trials, name) for name in AUGMENTATIONS}
    bars: list[tuple[str, Group]] = [
        (name, group) for name, groups in found.items() for group in groups
    ]
    if not bars:
        return None
    data: Figure = {
        "type": "scatter",
        "mode": "markers",
        "x": [[name for name, _ in bars], [group.label for _, group in bars]],
        "y": [_short(100 * group.difference) for _, group in bars],
        "error_y": {"type": "data", "array": [_short(100 * g.standard_error) for _, g in bars]},
        "text": [f"{group.n} trials" for _, group in bars],
        "marker": {"color": _COLOURS[0]},
        "name": "",
    }
    return _figure(
        "Augmentations: loss of trials with little to much of each, to the mean of all (± s.e.)",
        [data],
        y="per cent of loss; lower is better",
    )


_STEPS = {"line": {"shape": "hv"}}
_BOX = ("lowerfence", "q1", "median", "q3", "upperfence")


def _figure(
    title: str,
    data: Sequence[Mapping[str, Any]],
    x: str = "",
    y: str = "",
    lines: Sequence[Mapping[str, Any]] = (),
) -> Figure:
    layout = {
        "title": {"text": title},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}},
        "shapes": list(lines),
        "hovermode": "closest",
    }
    return {"data": list(data), "layout": layout}


def _points(name: str, points: Sequence[tuple[Any, float, int]], colour: int) -> Figure:
    """Marks at (x, y), each with the number of its trial."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [_short(x) for x, _, _ in points],
        "y": [_short(y) for _, y, _ in points],
        "text": [f"#{number}" for _, _, number in points],
        "marker": {"color": _COLOURS[colour], "size": 6},
    }


def _thinned(
    points: Sequence[tuple[Any, float, int]],
    key: Callable[[tuple[Any, float, int]], float] | None = None,
) -> list[tuple[Any, float, int]]:
    """At most `MOST_POINTS`: the lowest half by ``key`` and a sample of the rest, in their order.

    Without a key: the last ones.
    """
    if len(points) <= MOST_POINTS:
        return list(points)
    if key is None:
        return list(points[-MOST_POINTS:])
    ranked = sorted(range(len(points)), key=lambda i: key(points[i]))
    kept = ranked[: MOST_POINTS // 2]
    rest = ranked[MOST_POINTS // 2 :]
    kept += random.Random(_SEED).sample(rest, MOST_POINTS - len(kept))
    return [points[i] for i in sorted(kept)]


def _thresholds(config: StudyConfig, losses: Sequence[float]) -> list[Figure]:
    """The author's thresholds within the plot; they say nothing about other drawings."""
    if not config.instances.has_points:
        return []
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "line": {"dash": "dot", "width": 1}}
    near = [t for t, _ in POINTS if min(losses) * 0.9 <= t <= max(losses) * 1.1]
    return [{**line, "y0": t, "y1": t} for t in near]


def _quartiles(ordered: Sequence[float]) -> tuple[float, ...]:
    """Lowest, quartiles and highest of ordered numbers."""
    last = len(ordered) - 1
    return tuple(ordered[round(share * last)] for share in (0, 0.25, 0.5, 0.75, 1))


def _short(value: Any) -> Any:
    """A number with the digits that a plot shows; JSON has no word for those not finite."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
