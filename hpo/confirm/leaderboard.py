"""The leaderboard of a race of files, as a document."""

from __future__ import annotations

from collections.abc import Iterator

from ..formatting import counted, with_error
from ..problem.points import points
from ..report.document import Block, Document, Section, Table, Text
from ..report.sections.confirmation import COST_MEANING, cost_text
from ..study.config import StudyConfig
from ..study.confirmation import Left
from .files import Leaderboard, Place


def leaderboard_of(config: StudyConfig, board: Leaderboard) -> Document:
    """The document that `hpo.confirm --submission` prints: the files by their losses."""
    return Document(
        title=f"Files on the held-out instances of study {config.name}",
        about="",
        lead=[_lead(board)],
        made="",
        sections=[Section("files", "Leaderboard", list(_blocks(config, board)))],
    )


def _lead(board: Leaderboard) -> str:
    best = board.places[0]
    if best.contender.left != Left.FINALIST:
        return "No file kept the limits."
    n = counted(len(board.instances), "instance")
    return (
        f"{best.submission.name} has the lowest loss on {n}: "
        f"{with_error(best.loss.mean, best.loss.standard_error)}."
    )


def _blocks(config: StudyConfig, board: Leaderboard) -> Iterator[Block]:
    has_points = config.instances.has_points
    yield Table(
        "The files, on instances that no trial saw",
        ("file", "loss", "points", f"to {board.baseline}", "95 % interval", "longest call",
         "cost", "calls", "left"),
        [_row(place, has_points) for place in board.places],
        numbers=(1, 2, 3, 4, 5, 6, 7),
    )  # fmt: skip
    for place in board.places:
        if place.reason:
            yield Text(f"{place.submission.name}: {place.reason}.")
    note = (
        "Errors are standard errors over runes. Differences are paired, on the instances that both "
        "files were measured on; losses of files that left early are of fewer instances."
    )
    if not has_points:
        note += " No points: the author's thresholds are for ten drawings of Omniglot's Futhorc."
    yield Text(f"{note} {COST_MEANING}", aside=True)


def _row(place: Place, has_points: bool) -> tuple[str, ...]:
    difference, loss = place.difference, place.loss
    known = bool(place.contender.losses)
    is_final = place.contender.left == Left.FINALIST
    return (
        place.submission.name,
        with_error(loss.mean, loss.standard_error) if known else "",
        str(points(loss.mean)) if has_points and is_final else "",
        with_error(difference.mean, difference.standard_error, "+")
        if difference and difference.units
        else "",
        f"{difference.low:+.4f} to {difference.high:+.4f}"
        if difference and difference.units > 1
        else "",
        f"{place.contender.longest_s:.1f} s" if known else "",
        cost_text(place.cost),
        str(len(place.contender.losses)),
        "" if is_final else str(place.contender.left),
    )
