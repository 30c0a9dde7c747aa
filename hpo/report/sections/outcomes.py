"""Outcomes of trials, and what pruning saved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ...analysis.references import searched_places
from ...formatting import counted
from ...trial.outcome import NO_OUTCOME, Outcome
from ...trial.run import Run
from ..data import StudyData
from ..document import Block, Figure, Section, Table, Text
from ..plots import Mark, Row, RowPlot
from ..sanitize import plain

_MOST_OUTCOMES = 20
_REASON = 160  # characters
_MEANINGS = {
    Outcome.COMPLETE: "measured on every instance",
    Outcome.PRUNED: "weak compared with the best trial",
    Outcome.INFEASIBLE: "a call took longer than is allowed",
    "hopeless": "its training loss was far above all known ones",
    Outcome.CRASHED: "finetune_model raised an error, ended its process or used too much memory",
    Outcome.NOT_FINITE: "a loss was not a number",
    Outcome.OUT_OF_MEMORY: "the recipe needs more memory than there was",
    Outcome.OUT_OF_TIME: "a call was stopped at the limit",
    Outcome.LOST_WORKER: "its worker was lost too often",
    Outcome.BUG: "an error of the program; says nothing about the recipe",
    NO_OUTCOME: "ended by another program",
}


def outcomes_section(data: StudyData) -> Section:
    """Counts by outcome, and how many trials were left after each instance."""
    blocks = [*_outcomes(data), *_saved(data)]
    return Section("outcomes", "Outcomes of trials", blocks or [Text("No trial has finished yet.")])


def _outcomes(data: StudyData) -> Iterator[Block]:
    by_outcome: dict[str, list[Run]] = defaultdict(list)
    for run in data.finished:
        by_outcome[run.outcome].append(run)
    ordered = sorted(by_outcome.items(), key=lambda item: -len(item[1]))
    if not ordered:
        return
    rows = []
    for outcome, runs in ordered[:_MOST_OUTCOMES]:
        last = next((r for r in reversed(runs) if r.reason), None)
        rows.append(
            (outcome, str(len(runs)), f"{len(runs) / len(data.finished):.0%}",
             _MEANINGS.get(outcome, ""),
             "" if last is None else f"trial {last.number}: {plain(last.reason, _REASON)}")
        )  # fmt: skip
    yield Table(
        "Finished trials by how they ended",
        ("ended", "trials", "share", "which means", "the last one"),
        rows,
        numbers=(1, 2),
    )


def _saved(data: StudyData) -> Iterator[Block]:
    total = len(searched_places(data.manifest)) or max((len(r.calls) for r in data.best),
                                                       default=0)  # fmt: skip
    begun = [r for r in data.finished if r.state.name in ("COMPLETE", "PRUNED")]
    if total < 2 or not begun:
        return
    left = [sum(len(r.calls) >= n for r in begun) for n in range(1, total + 1)]
    made = sum(left)
    words = (
        f"Of {len(begun)} trials that ended by themselves, {left[-1]} were measured on all "
        f"{total} instances. They took {made} calls, {1 - made / (len(begun) * total):.0%} fewer "
        "than without any early end."
    )
    yield Figure(
        RowPlot(
            "measured",
            "Trials that were measured on so many instances",
            "; ".join(f"{n}: {count} trials" for n, count in enumerate(left, 1)),
            "trials",
            [Row(counted(n, "instance"), [Mark("", count, 0.0, count)])
             for n, count in enumerate(left, 1)],
            from_zero=True,
        ),
        words,
    )  # fmt: skip
