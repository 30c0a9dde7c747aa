"""Make the stored result of a confirmation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..analysis.intervals import CONFIDENCE, Interval
from ..study.confirmation import (
    CandidateResult,
    Comparisons,
    Confirmation,
    Difference,
)
from ..trial.record import Call
from ..trial.stored import finite
from .candidates import Candidate, search_difference
from .halving import Contender, Halved


def result_of(
    halved: Halved,
    candidates: Sequence[Candidate],
    reasons: Mapping[str, str | None],
    costs: Mapping[str, float | None],
    calls: Mapping[str, Sequence[Call]],
    *,
    rounds: Sequence[int],
    estimator: Mapping[str, Any],
    feasible_s: float,
    code: str,
) -> Confirmation:
    """The winner among the finalists, with its comparisons and the table of all candidates.

    Args:
        halved: the finished race; it has a finalist.
        candidates: all candidates, the baseline first.
        reasons: why candidates are infeasible, by digest.
        costs: CPU time of an answer relative to the plain network's, by digest.
        calls: calls with a loss, by digest.
        rounds: number of instances after each round.
        estimator: settings of the estimator.
        feasible_s: seconds within which a call must return.
        code: digest of the code that measured.
    """
    by_digest = {c.digest: c for c in candidates}
    baseline = candidates[0]
    finalists = [by_digest[c.candidate] for c in halved.finalists]
    winner = finalists[0]
    others = {"default": baseline, "runner_up": finalists[1] if len(finalists) > 1 else None}
    comparisons = {
        key: _difference(other, halved.difference(winner.digest, other.digest))
        for key, other in others.items()
        if other is not None and other is not winner
    }
    loss = halved.loss(winner.digest)
    return Confirmation(
        name=winner.name,
        trial=winner.number,
        digest=winner.digest,
        loss=loss.mean,
        standard_error=finite(loss.standard_error),
        cost=costs.get(winner.digest),
        recipe=dict(winner.recipe),
        against=Comparisons(**comparisons),
        confidence=CONFIDENCE,
        units=loss.units,
        instances=tuple(halved.units),
        table=tuple(
            _row(
                halved,
                contender,
                by_digest[contender.candidate],
                baseline,
                reasons[contender.candidate],
                costs.get(contender.candidate),
                calls.get(contender.candidate, ()),
            )
            for contender in halved.contenders
        ),
        rounds=tuple(rounds),
        estimator=dict(estimator),
        feasible_s=feasible_s,
        code=code,
    )


def _difference(other: Candidate, found: Interval) -> Difference:
    return Difference(
        name=other.name,
        trial=other.number,
        digest=other.digest,
        difference=finite(found.mean),
        standard_error=finite(found.standard_error),
        low=finite(found.low),
        high=finite(found.high),
    )


def _row(
    halved: Halved,
    contender: Contender,
    candidate: Candidate,
    baseline: Candidate,
    reason: str | None,
    cost: float | None,
    calls: Sequence[Call],
) -> CandidateResult:
    loss, order = halved.loss(candidate.digest), list(halved.units)
    in_search = list(candidate.search_losses.values())
    here, there = _estimate(None), _estimate(None)
    if candidate is not baseline:
        here = _estimate(halved.difference(candidate.digest, baseline.digest))
        there = _estimate(search_difference(candidate, baseline))
    return CandidateResult(
        name=candidate.name,
        trial=candidate.number,
        digest=candidate.digest,
        left=str(contender.left),
        reason=reason,
        rounds=contender.rounds,
        calls=len(contender.losses),
        longest_call_s=contender.longest_s,
        loss=finite(loss.mean),
        standard_error=finite(loss.standard_error),
        difference=here[0],
        difference_error=here[1],
        search_loss=sum(in_search) / len(in_search) if in_search else None,
        search_difference=there[0],
        search_difference_error=there[1],
        cost=cost,
        measured=tuple(sorted(calls, key=lambda call: order.index(call.instance))),
    )


def _estimate(found: Interval | None) -> tuple[float | None, float | None]:
    """The mean and its standard error, each None if unknown."""
    return (None, None) if found is None else (finite(found.mean), finite(found.standard_error))
