"""The result of a confirmation: the winner in words, and all candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...formatting import counted, with_error
from ...problem.points import points
from ...study.confirmation import (
    BASELINE,
    CandidateResult,
    Confirmation,
    Left,
    describe_difference,
)
from ...trial.record import Call
from ..document import Block, Figure, Section, Table, Text
from ..plots import Line, Mark, Row, RowPlot

COST_MEANING = "The cost of an answer is the CPU time of the returned network over the plain one's."


def confirmed_lead(confirmed: Confirmation, has_points: bool) -> Iterator[str]:
    """The winner, its loss and its differences, in sentences.

    Args:
        has_points: whether the challenge's points apply to these drawings.
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
    """The candidates, as `hpo.confirm` prints them."""
    return Section("candidates", "Candidates", list(candidate_blocks(confirmed)))


def candidate_blocks(confirmed: Confirmation) -> Iterator[Block]:
    """A table of the candidates, an explanation of its errors, and a figure."""
    yield Table(
        "The best of the search and the default recipe, measured again on instances that no "
        "trial saw",
        ("recipe", "loss", "to the default", "in the search", "longest call", "steps", "cost",
         "rounds", "left"),
        [_candidate_row(row) for row in confirmed.table],
        numbers=(1, 2, 3, 4, 5, 6, 7),
    )  # fmt: skip
    yield from _clock_blocks(confirmed)
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
        steps_text(row.measured),
        cost_text(row.cost),
        str(row.rounds),
        "" if row.left == Left.FINALIST else row.left,
    )


def _clock_blocks(confirmed: Confirmation) -> Iterator[Block]:
    """The clock of the calls, the error of its predictions, and the winner at other speeds."""
    if confirmed.clock not in (None, "wall"):
        yield Text(
            f"Calls made as many steps as the machine {confirmed.clock} makes in the deadline; "
            "the longest call is the predicted one."
        )
    off = confirmed.prediction
    if off is not None:
        yield Text(
            f"By wall clock {counted(off.calls, 'call')} made {off.steps:.2f} of the steps that "
            f"the reference machine would make (median; {off.least_steps:.2f} to "
            f"{off.most_steps:.2f}), in {off.seconds:.2f} of the predicted seconds."
        )
    if confirmed.speeds:
        yield Table(
            "The winner at other speeds of the reference machine",
            ("speed", "steps", "loss"),
            [
                (
                    f"{at.speed:g}",
                    "{} to {}".format(*at.steps) if at.steps[0] < at.steps[1] else str(at.steps[0]),
                    at.reason or with_error(at.loss, at.standard_error),
                )
                for at in confirmed.speeds
            ],
            numbers=(0, 1, 2),
        )


def steps_text(calls: Sequence[Call]) -> str:
    """Steps made of steps wanted, in the call with the smallest share; empty if unknown."""
    known = [(c.steps, c.steps_wanted or c.steps) for c in calls if c.steps]
    if not known:
        return ""
    made, wanted = min(known, key=lambda pair: pair[0] / pair[1])
    return str(made) if made == wanted else f"{made} of {wanted}"


def _difference_mark(row: CandidateResult, difference: float) -> Mark:
    error = row.difference_error
    if error is None:
        return Mark("", difference)
    return Mark("", difference, difference - error, difference + error)


def cost_text(cost: float | None) -> str:
    """The cost of an answer; empty if unknown."""
    return "" if cost is None else f"{cost:.2f}"


def points_text(loss: float) -> str:
    """The challenge's points for a mean loss."""
    return counted(points(loss), "point")
