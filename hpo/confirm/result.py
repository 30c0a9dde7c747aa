"""What came out when the best few recipes were measured again: as JSON, and for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..analysis.intervals import CONFIDENCE, Interval
from ..formatting import cost_of_answer, with_error
from ..study.confirmation import Left, describe_difference, title
from .candidates import Candidate, search_difference
from .halving import Halved, Standing


def result_of(
    halved: Halved,
    candidates: Sequence[Candidate],
    reasons: Mapping[str, str | None],
    costs: Mapping[str, float | None],
) -> dict[str, Any]:
    """What is stored as the study's attribute ``confirmed``: JSON values, null where unknown.

    Args:
        candidates: the baseline first.
        reasons: by digest, why a candidate is infeasible.
        costs: by digest, CPU time of an answer over the plain network's.
    """
    by_digest = {c.digest: c for c in candidates}
    baseline = candidates[0]
    finalists = halved.finalists
    winner = by_digest[finalists[0].candidate]
    runner_up = by_digest[finalists[1].candidate] if len(finalists) > 1 else None
    against = {
        key: {**_identity(other), **_interval(halved.difference(winner.digest, other.digest))}
        for key, other in (("default", baseline), ("runner_up", runner_up))
        if other is not None and other is not winner
    }
    loss = halved.loss(winner.digest)
    return {
        **_identity(winner),
        "loss": loss.mean,
        "standard_error": _number(loss.standard_error),
        "cost": costs.get(winner.digest),
        "recipe": dict(winner.recipe),
        "against": against,
        "confidence": CONFIDENCE,
        "units": loss.units,
        "instances": list(halved.units),
        "table": [
            {
                **_row(halved, s, by_digest[s.candidate], baseline, reasons),
                "cost": costs.get(s.candidate),
            }
            for s in halved.standings
        ],
    }


def _identity(candidate: Candidate) -> dict[str, Any]:
    return {"name": candidate.name, "trial": candidate.number, "digest": candidate.digest}


def _interval(found: Interval) -> dict[str, Any]:
    return {
        "difference": _number(found.mean),
        "standard_error": _number(found.standard_error),
        "low": _number(found.low),
        "high": _number(found.high),
    }


def _row(
    halved: Halved,
    standing: Standing,
    candidate: Candidate,
    baseline: Candidate,
    reasons: Mapping[str, str | None],
) -> dict[str, Any]:
    """A line of the table: on new instances, and in the search."""
    loss = halved.loss(candidate.digest)
    here = None if candidate is baseline else halved.difference(candidate.digest, baseline.digest)
    there = None if candidate is baseline else search_difference(candidate, baseline)
    in_search = list(candidate.search_losses.values())
    return {
        **_identity(candidate),
        "left": str(standing.left),
        "reason": reasons[candidate.digest],
        "rounds": standing.rounds,
        "calls": len(standing.losses),
        "longest_call_s": standing.longest_s,
        "loss": _number(loss.mean),
        "standard_error": _number(loss.standard_error),
        "difference": here and _number(here.mean),
        "difference_error": here and _number(here.standard_error),
        "search_loss": sum(in_search) / len(in_search) if in_search else None,
        "search_difference": there and _number(there.mean),
        "search_difference_error": there and _number(there.standard_error),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


_COLUMNS = (
    "candidate",
    "trial",
    "loss",
    "to default",
    "in the search",
    "longest",
    "cost",
    "rounds",
    "",
)
_RIGHT = (1, 5, 6, 7)  # columns of numbers


def to_text(result: Mapping[str, Any]) -> str:
    """The table, the winner, and what the search made of it."""
    rows = [_COLUMNS, *(_cells(row) for row in result["table"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.rjust(width) if i in _RIGHT else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += [f"{title_of(r)} on {r['reason']}" for r in result["table"] if r["reason"]]
    return "\n".join([*lines, *_verdict(result)])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        "-" if row["trial"] is None else str(row["trial"]),
        with_error(row["loss"], row["standard_error"]),
        with_error(row["difference"], row["difference_error"], "+"),
        with_error(row["search_difference"], row["search_difference_error"], "+"),
        f"{row['longest_call_s']:.1f} s",
        "" if row.get("cost") is None else f"{row['cost']:.2f}",
        str(row["rounds"]),
        "" if row["left"] == Left.FINALIST else row["left"],
    )


def title_of(identity: Mapping[str, Any]) -> str:
    """`Candidate.title` of one that was stored."""
    return title(identity["name"], identity["trial"])


def _verdict(result: Mapping[str, Any]) -> list[str]:
    n = len(result["instances"])
    lines = [
        f"winner: {title_of(result)}, loss "
        f"{with_error(result['loss'], result['standard_error'])} "
        f"on {n} unseen instance{'' if n == 1 else 's'}"
    ]
    if result.get("cost") is not None:
        lines.append(f"  cost of an answer: {cost_of_answer(result['cost'])}")
    default, other = result["against"].get("default"), result["against"].get("runner_up")
    if default:
        lines.append(f"  against the default recipe: {describe_difference(default)}")
    if other and not (default and other["digest"] == default["digest"]):
        lines.append(f"  against runner-up {title_of(other)}: {describe_difference(other)}")
    row = next(r for r in result["table"] if r["digest"] == result["digest"])
    if row["search_loss"] is not None:
        lines.append(f"  in the search: loss {row['search_loss']:.4f}")
        if row["search_difference"] is not None:
            error = row["search_difference_error"]
            lines[-1] += f", {with_error(row['search_difference'], error, '+')} to the default's"
    return lines
