"""How the search went: the best so far against compute, and loss against seconds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from finetune.challenge import POINTS

from ...formatting import duration, with_error
from ...trial.run import Run
from ..data import Given
from ..document import Block, Figure, Pair, Section, Table, Text
from ..svg.axes import Plot, axis_of

_MOST_ROWS = 10
# Losses higher than the median by more than so many times its distance from the best are not
# drawn: runs that diverged would press all others into a line.
_REACH = 2.5


def course_section(given: Given) -> Section:
    """Both figures, with the trials that matter in them as tables."""
    return Section("course", "How the search went", list(_blocks(given)))


def _blocks(given: Given) -> Iterator[Block]:
    spent = list(_by_compute(given.finished))
    if not given.best:
        yield Text("No trial is complete and feasible, so there is no course to show.")
        return
    steps = list(_steps(spent))
    yield Pair(_best_so_far(given, spent, steps), _improvements(steps))
    yield from _against_seconds(given)


def _by_compute(finished: Sequence[Run]) -> Iterator[tuple[float, Run]]:
    """Finished trials in the order of their ends, with the hours of all trials until then."""
    total_s = 0.0
    for run in sorted(finished, key=lambda r: (r.ended_s or 0.0, r.number)):
        total_s += run.duration_s
        yield total_s / 3600, run


def _steps(spent: Sequence[tuple[float, Run]]) -> Iterator[tuple[float, Run]]:
    """The trials that were best when they ended."""
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
    given: Given, spent: Sequence[tuple[float, Run]], steps: Sequence[tuple[float, Run]]
) -> Figure:
    good = [(h, r.loss) for h, r in spent if r.is_good and r.loss is not None]
    slow = [(h, r.loss) for h, r in spent if r.state.name == "COMPLETE" and not r.feasible
            and r.loss is not None]  # fmt: skip
    limit = loss_limit([loss for _, loss in good])
    above = sum(loss > limit for _, loss in [*good, *slow])
    drawn = [loss for _, loss in [*good, *slow] if loss <= limit]
    last_h = spent[-1][0]
    unit, factor = ("hours", 1.0) if last_h >= 2 else ("minutes", 60.0)
    plot = Plot(
        "best-so-far",
        "Best loss so far against compute",
        f"{len(good)} complete trials; the best falls from {good[0][1]:.4f} to "
        f"{steps[-1][1].loss:.4f} within {duration(3600 * last_h)} of compute. The table of "
        "improvements has the values.",
        axis_of(f"compute of all trials, {unit}", [0.0, last_h * factor or 1.0]),
        axis_of("loss", drawn),
    )
    plot.dots([(h * factor, loss) for h, loss in slow], "faint")
    plot.dots([(h * factor, loss) for h, loss in good], "second")
    if given.has_points:
        for most, worth in POINTS:
            plot.across(most, f"{worth} points" if worth > 1 else "1 point", "threshold")
    plot.steps([(h * factor, r.loss or 0.0) for h, r in steps], "line first")
    plot.dots([(h * factor, r.loss or 0.0) for h, r in steps], "large first")
    caption = "Each dot is a complete trial; the line is the best so far."
    if slow:
        caption += " Grey: infeasible."
    if above:
        caption += f" {above} with a higher loss {'is' if above == 1 else 'are'} not shown."
    return Figure(plot.markup(), caption)


def _improvements(steps: Sequence[tuple[float, Run]]) -> Table:
    cut = len(steps) > _MOST_ROWS
    return Table(
        f"The last {_MOST_ROWS} of {len(steps)} improvements" if cut else "Improvements",
        ("trial", "after compute of", "loss", "longest call"),
        [(f"trial {r.number}", duration(3600 * h), with_error(r.loss, r.standard_error),
          _seconds(r)) for h, r in steps[-_MOST_ROWS:]],
        numbers=(1, 2, 3),
    )  # fmt: skip


def _against_seconds(given: Given) -> Iterator[Block]:
    timed = [(r.longest_s, r.loss, r) for r in given.runs
             if r.state.name == "COMPLETE" and r.longest_s is not None and r.loss is not None
             ]  # fmt: skip
    good = [(s, loss, r) for s, loss, r in timed if r.feasible]
    if not good:
        return
    limit = loss_limit([loss for _, loss, _ in good])
    front = pareto(good)
    slow = [(s, loss) for s, loss, r in timed if not r.feasible]
    plot = Plot(
        "loss-seconds",
        "Loss against seconds of the longest call",
        f"{len(good)} feasible trials, of which {len(front)} have the lowest loss for their "
        "seconds. The table of these has the values.",
        axis_of("seconds of the longest call", [s for s, _, _ in timed]),
        axis_of("loss", [loss for _, loss, _ in timed if loss <= limit]),
    )
    plot.dots(slow, "faint")
    plot.dots([(s, loss) for s, loss, _ in good], "second")
    plot.upright(given.config.feasible_s, f"{given.config.feasible_s:g} s allowed", "threshold")
    plot.steps([(s, loss) for s, loss, _ in front], "line first")
    plot.dots([(s, loss) for s, loss, _ in front], "large first")
    figure = Figure(
        plot.markup(),
        "Each dot is a complete trial; no trial is both faster and better than those on the line."
        + (" Grey: infeasible." if slow else ""),
    )
    cut = len(front) > _MOST_ROWS
    table = Table(
        (f"The best {_MOST_ROWS} of {len(front)} trials" if cut else "Trials")
        + " that no other beats in both loss and seconds",
        ("trial", "longest call", "loss"),
        [(f"trial {r.number}", _seconds(r), with_error(r.loss, r.standard_error))
         for _, _, r in front[-_MOST_ROWS:]],
        numbers=(1, 2),
    )  # fmt: skip
    yield Pair(figure, table)


def pareto(timed: Sequence[tuple[float, float, Run]]) -> list[tuple[float, float, Run]]:
    """Those that none beats in both seconds and loss, the fastest first."""
    front: list[tuple[float, float, Run]] = []
    for one in sorted(timed, key=lambda o: (o[0], o[1], o[2].number)):
        if not front or one[1] < front[-1][1]:
            front.append(one)
    return front


def _seconds(run: Run) -> str:
    return "" if run.longest_s is None else f"{run.longest_s:.1f} s"
