"""History of the search: the best loss so far against compute, and loss against seconds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from ...formatting import counted, duration, with_error
from ...problem.points import POINTS
from ...trial.run import Run
from ..data import StudyData
from ..document import Block, Figure, Pair, Section, Table, Text
from ..plots import Line, Plot, Series, Style, axis_of

_MOST_ROWS = 10
# A loss is not drawn if it lies above the median by more than this many times the distance from the
# best to the median. Otherwise diverged runs would press all others into a line.
_REACH = 2.5

Timed = tuple[float, float, Run]  # seconds of the longest call, loss, trial


def history_section(data: StudyData) -> Section:
    """Both figures, each with a table of the trials that stand out."""
    return Section("history", "History of the search", list(_blocks(data)))


def _blocks(data: StudyData) -> Iterator[Block]:
    if not data.best:
        yield Text("No trial is complete and feasible, so there is no history to show.")
        return
    spent = list(_by_compute(data.finished))
    steps = list(_improvements(spent))
    yield Pair(_best_so_far(data, spent, steps), _improvement_table(steps))
    yield from _loss_by_seconds(data)


def _by_compute(finished: Sequence[Run]) -> Iterator[tuple[float, Run]]:
    """Finished trials in the order of their ends, with the hours of compute until then."""
    total_s = 0.0
    for run in sorted(finished, key=lambda r: (r.ended_s or 0.0, r.number)):
        total_s += run.compute_s
        yield total_s / 3600, run


def _improvements(spent: Sequence[tuple[float, Run]]) -> Iterator[tuple[float, Run]]:
    """The trials that were the best when they ended."""
    best = math.inf
    for hours, run in spent:
        if run.is_good and run.loss is not None and run.loss < best:
            best = run.loss
            yield hours, run


def loss_limit(losses: Sequence[float]) -> float:
    """The highest loss that a figure shows."""
    low, middle = min(losses), statistics.median(losses)
    reach = middle + _REACH * (middle - low)
    return max((x for x in losses if x <= reach), default=max(losses))


def _best_so_far(
    data: StudyData, spent: Sequence[tuple[float, Run]], steps: Sequence[tuple[float, Run]]
) -> Figure:
    complete = [(h, r) for h, r in spent if r.state.name == "COMPLETE" and r.loss is not None]
    good = [(h, r) for h, r in complete if r.feasible]
    slow = [(h, r) for h, r in complete if not r.feasible]
    limit = loss_limit([_loss(r) for _, r in good])
    above = sum(_loss(r) > limit for _, r in complete)
    last_h = spent[-1][0]
    unit, factor = ("hours", 1.0) if last_h >= 2 else ("minutes", 60.0)

    def series(name: str, style: Style, of: Sequence[tuple[float, Run]]) -> Series:
        points = [(h * factor, _loss(r)) for h, r in of]
        return Series(name, style, points, [f"#{r.number}" for _, r in of])

    plot = Plot(
        "best-so-far",
        "Best loss so far against compute",
        f"{len(good)} complete trials; the best falls from {_loss(good[0][1]):.4f} to "
        f"{_loss(steps[-1][1]):.4f} within {duration(3600 * last_h)} of compute. The table of "
        "improvements has the values.",
        axis_of(f"compute of all trials, {unit}", [0.0, last_h * factor or 1.0]),
        axis_of("loss", [_loss(r) for _, r in complete if _loss(r) <= limit]),
        [
            series("infeasible", "faint", slow),
            series("complete trials", "cloud", good),
            series("best so far", "steps", steps),
        ],
        across=[Line(most, counted(worth, "point")) for most, worth in POINTS]
        if data.has_points
        else (),
    )
    caption = "Each dot is a complete trial; the line is the best so far."
    if slow:
        caption += " Grey: infeasible."
    if above:
        caption += f" {above} with a higher loss {'is' if above == 1 else 'are'} not shown."
    return Figure(plot, caption)


def _improvement_table(steps: Sequence[tuple[float, Run]]) -> Table:
    cut = len(steps) > _MOST_ROWS
    return Table(
        f"The last {_MOST_ROWS} of {len(steps)} improvements" if cut else "Improvements",
        ("trial", "after compute of", "loss", "longest call"),
        [
            (
                f"trial {r.number}",
                duration(3600 * h),
                with_error(r.loss, r.standard_error),
                _seconds(r),
            )
            for h, r in steps[-_MOST_ROWS:]
        ],
        numbers=(1, 2, 3),
    )


def _loss_by_seconds(data: StudyData) -> Iterator[Block]:
    timed = [
        (r.longest_s, r.loss, r)
        for r in data.runs
        if r.state.name == "COMPLETE" and r.longest_s is not None and r.loss is not None
    ]
    good = [one for one in timed if one[2].feasible]
    if not good:
        return
    limit = loss_limit([loss for _, loss, _ in good])
    front = pareto(good)
    slow = [one for one in timed if not one[2].feasible]

    def series(name: str, style: Style, of: Sequence[Timed]) -> Series:
        points = [(s, loss) for s, loss, _ in of]
        return Series(name, style, points, [f"#{r.number}" for _, _, r in of])

    allowed_s = data.config.feasible_s
    plot = Plot(
        "loss-seconds",
        "Loss against seconds of the longest call",
        f"{len(good)} feasible trials, of which {len(front)} have the lowest loss for their "
        "seconds. The table of these has the values.",
        axis_of("seconds of the longest call", [s for s, _, _ in timed]),
        axis_of("loss", [loss for _, loss, _ in timed if loss <= limit]),
        [
            series("infeasible", "faint", slow),
            series("feasible", "cloud", good),
            series("best for their seconds", "steps", front),
        ],
        upright=[Line(allowed_s, f"{allowed_s:g} s allowed")],
    )
    cut = len(front) > _MOST_ROWS
    table = Table(
        (f"The best {_MOST_ROWS} of {len(front)} trials" if cut else "Trials")
        + " that no other beats in both loss and seconds",
        ("trial", "longest call", "loss"),
        [
            (f"trial {r.number}", _seconds(r), with_error(r.loss, r.standard_error))
            for _, _, r in front[-_MOST_ROWS:]
        ],
        numbers=(1, 2),
    )
    caption = (
        "Each dot is a complete trial; no trial is both faster and better than those on the line."
    )
    yield Pair(Figure(plot, caption + (" Grey: infeasible." if slow else "")), table)


def pareto(timed: Sequence[Timed]) -> list[Timed]:
    """The trials that no other beats in both seconds and loss, fastest first."""
    front: list[Timed] = []
    for one in sorted(timed, key=lambda o: (o[0], o[1], o[2].number)):
        if not front or one[1] < front[-1][1]:
            front.append(one)
    return front


def _loss(run: Run) -> float:
    return math.nan if run.loss is None else run.loss


def _seconds(run: Run) -> str:
    return "" if run.longest_s is None else f"{run.longest_s:.1f} s"
