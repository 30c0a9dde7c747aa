"""A race of candidates by sequential halving, with intervals for the winner's differences.

All candidates are measured on a first block of instances.  The weaker ones are dropped, the others
are measured on a block twice as long, and so on (Karnin, Koren and Somekh 2013).  Candidates are
compared by paired differences on the same instances, because instances differ far more than good
candidates do.

Losses on two splits of one rune are not independent.  So losses are first averaged within their
*unit*, the rune, and every standard error is over units.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..analysis.intervals import Interval, interval, unit_means
from ..study.confirmation import Left

# A candidate is dropped if it is further behind the leader than so many standard errors.
ERRORS_BEHIND = 2.0
# Halving keeps at least so many challengers.
LEAST_CHALLENGERS = 2

Measure = Callable[[str, str], tuple[float, float]]  # (candidate, instance) -> (loss, seconds)


@dataclass
class Contender:
    """A candidate in the race."""

    candidate: str
    losses: dict[str, float] = field(default_factory=dict)  # by instance
    longest_s: float = 0.0  # seconds of its longest call
    rounds: int = 0  # number of rounds that it survived
    left: Left = Left.FINALIST


@dataclass(frozen=True)
class Halved:
    """A finished race.

    ``contenders``: the finalists by mean loss, then the others, last dropped first.
    ``units``: the unit of each instance.
    """

    contenders: tuple[Contender, ...]
    units: Mapping[str, str]

    @property
    def finalists(self) -> tuple[Contender, ...]:
        """The contenders that were measured on every instance, by mean loss."""
        return tuple(c for c in self.contenders if c.left == Left.FINALIST)

    def __getitem__(self, candidate: str) -> Contender:
        return next(c for c in self.contenders if c.candidate == candidate)

    def loss(self, candidate: str) -> Interval:
        """A candidate's mean loss over the units that it was measured on."""
        return interval(list(unit_means(self[candidate].losses, self.units).values()))

    def difference(self, candidate: str, other: str) -> Interval:
        """``candidate`` minus ``other`` on the instances that both were measured on.

        The interval is Bonferroni's for as many comparisons as a finalist has with the others,
        because the winner was chosen among the finalists by the same losses.
        """
        theirs = self[other].losses
        differences = {i: x - theirs[i] for i, x in self[candidate].losses.items() if i in theirs}
        comparisons = max(1, len(self.finalists) - 1)
        return interval(list(unit_means(differences, self.units).values()), comparisons)


def block_ends(n_instances: int, rounds: int) -> list[int]:
    """The number of instances after each round, in blocks that double and use all instances.

    The first block has at least two instances, because a difference without an error decides
    nothing.  If there are too few instances, there are fewer rounds.
    """
    shares = [(2**r - 1) / (2**rounds - 1) for r in range(1, rounds + 1)]
    least = min(2, n_instances)
    return sorted({max(least, round(n_instances * share)) for share in shares})


def most_challengers(n_challengers: int, round_number: int) -> int:
    """How many candidates beside the baseline may go on after a round, counted from 1."""
    return max(LEAST_CHALLENGERS, math.ceil(n_challengers / (1 << round_number)))


def most_calls(
    n_challengers: int, n_instances: int, rounds: int, after: int = 0, running: int | None = None
) -> int:
    """The largest number of measurements in the remaining rounds.

    Args:
        n_challengers: number of challengers at the start, without the baseline.
        after: number of finished rounds.
        running: number of challengers still in the race; None: all.
    """
    calls, done = 0, 0
    running = n_challengers if running is None else running
    for number, end in enumerate(block_ends(n_instances, rounds), start=1):
        if number > after:
            calls += (running + 1) * (end - done)
            running = min(running, most_challengers(n_challengers, number))
        done = end
    return calls


def halve(
    candidates: Sequence[str],
    baseline: str,
    units: Mapping[str, str],
    measure: Measure,
    *,
    rounds: int = 3,
    feasible_s: float = math.inf,
    order: random.Random | None = None,
    on_round: Callable[[int, Sequence[Contender]], None] | None = None,
) -> Halved:
    """Measure, compare, halve.

    After every round but the last,

    1. a candidate is dropped if it is more than two standard errors behind the leader.  The
       baseline and the best challenger stay, because the result compares with them;
    2. if more than half of the challengers are left (a quarter after the second round, and so on;
       never fewer than two), those with the highest mean loss are dropped, even if the data do not
       show that they are worse.

    The standard error is that of a difference of two candidates, estimated from the residuals of
    all of them (randomised blocks: loss = candidate + unit + residual), because two or three
    differences alone would estimate it badly.  The baseline is measured on every instance.

    Args:
        candidates: names of the candidates, including the baseline.
        units: unit of each instance, in the order in which instances are measured.
        measure: returns the loss and the seconds of a call.  A loss that is not finite, or a call
            of more than ``feasible_s``, puts any candidate out of the race.
        order: shuffles the measurements of a round, so that two processes that share their
            measurements seldom make the same one.
        on_round: called after each round with its number and all contenders.

    Raises:
        ValueError: the baseline is not a candidate, a candidate occurs twice, or there is no
            instance.
    """
    if baseline not in candidates or len(set(candidates)) != len(candidates) or not units:
        raise ValueError("a race takes distinct candidates, the baseline among them, and instances")
    instances = list(units)
    contenders = {name: Contender(name) for name in candidates}
    n_challengers = len(candidates) - 1
    ends = block_ends(len(instances), rounds)
    done = 0
    for number, end in enumerate(ends, start=1):
        _measure_block(
            _running(contenders.values()), instances[done:end], measure, feasible_s, order
        )
        running = _running(contenders.values())
        if end < len(instances):
            _drop(running, baseline, units, most_challengers(n_challengers, number))
        for contender in _running(running):
            contender.rounds = number
        if on_round is not None:
            on_round(number, list(contenders.values()))
        done = end
    means = {c.candidate: _mean(c, units) for c in contenders.values()}
    ranked = sorted(
        contenders.values(),
        key=lambda c: (c.left != Left.FINALIST, -c.rounds, means[c.candidate]),
    )
    return Halved(tuple(ranked), dict(units))


def _running(contenders: Iterable[Contender]) -> list[Contender]:
    return [c for c in contenders if c.left == Left.FINALIST]


def _mean(contender: Contender, units: Mapping[str, str]) -> float:
    means = unit_means(contender.losses, units).values()
    return sum(means) / len(means) if means else math.inf


def _measure_block(
    contenders: Sequence[Contender],
    block: Sequence[str],
    measure: Measure,
    feasible_s: float,
    order: random.Random | None,
) -> None:
    calls = [(contender, instance) for instance in block for contender in contenders]
    if order is not None:
        order.shuffle(calls)
    for contender, instance in calls:
        if contender.left == Left.INFEASIBLE:
            continue
        loss, seconds = measure(contender.candidate, instance)
        contender.longest_s = max(contender.longest_s, seconds)
        if math.isfinite(loss):
            contender.losses[instance] = loss
        if not math.isfinite(loss) or seconds > feasible_s:
            contender.left = Left.INFEASIBLE
    for contender in contenders:
        # In a fixed order, so that sums are the same to the last bit.
        contender.losses = dict(sorted(contender.losses.items()))


def _drop(
    contenders: Sequence[Contender], baseline: str, units: Mapping[str, str], most: int
) -> None:
    """Mark the contenders to drop after a round; all have losses on the same instances."""
    by_mean = sorted(contenders, key=lambda c: _mean(c, units))
    error = _error_of_difference([list(unit_means(c.losses, units).values()) for c in by_mean])
    stay = 0
    for contender in by_mean:
        if contender.candidate == baseline:
            continue
        behind = _mean(contender, units) - _mean(by_mean[0], units)
        if behind > ERRORS_BEHIND * error and stay > 0:
            contender.left = Left.BEHIND
        elif stay == most:
            contender.left = Left.TIED
        else:
            stay += 1


def _error_of_difference(losses: Sequence[Sequence[float]]) -> float:
    """Standard error of the difference of two candidates' means; ``losses`` (candidates, units).

    From the residual mean square of a randomised block design (Montgomery, Design and Analysis
    of Experiments, section 4.1).
    """
    table = np.asarray(losses, dtype=float)
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1) if table.ndim == 2 else 0
    if freedom < 1:
        return math.inf
    residuals = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    return math.sqrt(2 * float((residuals**2).sum()) / freedom / table.shape[1])
