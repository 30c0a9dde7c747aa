"""The result of a confirmation: the winner in words, and all candidates."""

from __future__ import annotations

from collections.abc import Iterator

from ...formatting import counted, with_error
from ...problem.points import points
from ...study.confirmation import (
    BASELINE,
    CandidateResult,
    Confirmation,
    Left,
    describe_difference,
)
from ..document import Block, Figure, Section, Table, Text
from ..plots import Line, Mark, Row, RowPlot

COST_MEANING = "The cost of an answer is the CPU time of the returned network over the plain one's."


def confirmed_lead(confirmed: Confirmation, has_points: bool) -> Iterator[str]:
    """The winner, its loss and its differences.

    Args:
        has_points: the author's thresholds are for these drawings.
    """
    who = f"The recipe {confirmed.name}" if confirmed.trial is None else f"Trial {confirmed.trial}"
    if confirmed.is_default:
        who = "The default recipe"
    text = (
        f"{who} is the best one, measured again on {counted(len(confirmed.instances), 'instance')} "
        f"that no trial saw: loss {with_error(confirmed.loss, confirmed.standard_error)}"
    )
    if has_points:
        text += f", {points_text(confirmed.loss)} by the author's table"
    yield text + "."
    default, runner_up = confirmed.comparisons.default, confirmed.comparisons.runner_up
    if default:
        yield f"Its loss minus the default recipe's: {describe_difference(default)}."
    if runner_up and not runner_up.is_default:
        yield f"Its loss minus the runner-up's: {describe_difference(runner_up)}."


def candidates_section(confirmed: Confirmation) -> Section:
    """The candidates alone, as `hpo.confirm` prints them."""
    return Section("candidates", "Candidates", list(candidate_blocks(confirmed)))


def candidate_blocks(confirmed: Confirmation) -> Iterator[Block]:
    """The table of the candidates, what its errors are, and a figure."""
    yield Table(
        "The best of the search and the default recipe, measured again on instances that no "
        "trial saw",
        ("recipe", "loss", "to the default", "in the search", "longest call", "cost", "rounds",
         "left"),
        [_candidate_row(row) for row in confirmed.table],
        numbers=(1, 2, 3, 4, 5, 6),
    )  # fmt: skip
    for row in confirmed.table:
        if row.reason:
            yield Text(f"{row.title} on {row.reason}.")
    note = (
        f"Errors are standard errors over {confirmed.units} runes. Differences are paired, on "
        "the instances that both were measured on; losses of recipes that left early are of "
        "fewer instances."
    )
    if any(row.cost is not None for row in confirmed.table):
        note += f" {COST_MEANING}"
    yield Text(note, aside=True)
    rows = [
        Row(row.title, [_difference_mark(row, row.difference)])
        for row in confirmed.table
        if row.difference is not None
    ]
    if rows:
        plot = RowPlot(
            "candidates",
            "Loss of each candidate minus the default recipe's",
            f"{len(rows)} candidates; further left is better. The table above has the values.",
            "loss, minus the default's",
            [*rows, Row(BASELINE, [Mark("", 0.0)])],
            lines=[Line(0.0, "")],
        )
        yield Figure(
            plot,
            "Loss minus the default recipe's on the same instances, with its standard error over "
            "runes. Left of the line is better.",
        )


def _candidate_row(row: CandidateResult) -> tuple[str, ...]:
    return (
        row.title,
        with_error(row.loss, row.standard_error),
        with_error(row.difference, row.difference_error, "+"),
        with_error(row.search_difference, row.search_difference_error, "+"),
        f"{row.longest_call_s:.1f} s",
        cost_text(row.cost),
        str(row.rounds),
        "" if row.left == Left.FINALIST else row.left,
    )


def _difference_mark(row: CandidateResult, difference: float) -> Mark:
    error = row.difference_error
    if error is None:
        return Mark("", difference)
    return Mark("", difference, difference - error, difference + error)


def cost_text(cost: float | None) -> str:
    """The cost of an answer; empty: unknown."""
    return "" if cost is None else f"{cost:.2f}"


def points_text(loss: float) -> str:
    """The author's points for a mean loss."""
    return counted(points(loss), "point")
