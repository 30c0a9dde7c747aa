"""Is another hour worth it: the probability that the best loss still falls.

It is estimated from the study's own trials: the spread of the best of them, the share of noise in
that spread, and the number of trials that an hour of compute makes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from ..trial.ranking import is_feasible, loss_of
from ..trial.record import compute_s

SHARE = 0.01  # a fall counts from this share of the best loss on
HOURS = 1.0
LEAST_TRIALS = 12  # with fewer losses no probability is given
_PROGRESS = 2.0  # earlier losses are left out if later ones are lower by this many standard errors
_TAIL = 0.15  # share of the trials, the best ones, that the tail is fitted to
_LEAST_TAIL = 3
_RECENT = 50  # the mean seconds of so many last trials predict those of the next
_MOST_NOISE = 0.9


@dataclass(frozen=True)
class Outlook:
    """The probability that the best loss falls by a given share.

    Args:
        chance: that probability, in [0, 1].
        share: the fall, as a share of the best loss.
        hours: hours of compute that are looked ahead.
        trials: number of trials that so much compute makes.
    """

    chance: float
    share: float
    hours: float
    trials: float

    def __str__(self) -> str:
        hours = "an hour" if self.hours == 1 else f"{self.hours:g} hours"
        return (
            f"the best loss falls by {100 * self.share:g} % within {hours} of compute with "
            f"probability {self.chance:.2g}"
        )


def outlook(
    trials: Sequence[FrozenTrial], share: float = SHARE, hours: float = HOURS
) -> Outlook | str:
    """The outlook by a study's finished trials, or the reason why there is none.

    Pruned trials count with their predicted loss.

    Args:
        share: the fall to look for, as a share of the best loss.
        hours: compute to look ahead: seconds of trials, added up over all workers.
    """
    finished = sorted((t for t in trials if t.state.is_finished()), key=lambda t: t.number)
    good = [t for t in finished if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    losses = [loss_of(t) for t in good if is_feasible(t)]
    known = [loss for loss in losses if loss is not None and loss > 0]
    if len(known) < LEAST_TRIALS:
        return f"{LEAST_TRIALS} trials with a loss are the least, and {len(known)} have one"
    seconds = [compute_s(t) for t in finished[-_RECENT:]]
    mean_s = sum(seconds) / len(seconds)
    if mean_s <= 0:
        return "the trials took no time"
    n = hours * 3600 / mean_s
    from .racing import Race  # SciPy takes a while to import
    from .statistics import Standings

    standings = Race().of(good)
    if standings is None:
        return "no trial is complete"
    compared = standings if isinstance(standings, Standings) else standings.target
    noise = compared.share_of_noise if compared else 0.0
    return Outlook(chance_of_fall(since_progress(known), n, share, noise), share, hours, n)


def since_progress(losses: Sequence[float]) -> Sequence[float]:
    """The latest losses: those since the search last made progress.

    While the later half of the losses is lower than the earlier half, by the test of Mann and
    Whitney (1947) in its normal approximation, the earlier half is left out: it no longer tells
    what the sampler tries next.

    Args:
        losses: in the order of their trials.
    """
    while len(losses) >= 2 * LEAST_TRIALS:
        earlier, later = sorted(losses[: len(losses) // 2]), losses[len(losses) // 2 :]
        # Of all pairs, those in which the later one is lower; ties count half.
        lower = sum(
            len(earlier) - (bisect_left(earlier, x) + bisect_right(earlier, x)) / 2 for x in later
        )
        pairs = len(earlier) * len(later)
        error = math.sqrt(pairs * (len(losses) + 1) / 12)
        if lower - pairs / 2 < _PROGRESS * error:
            break
        losses = later
    return losses


def chance_of_fall(losses: Sequence[float], n: float, share: float, noise: float = 0.0) -> float:
    """The probability that the lowest of ``n`` more losses undercuts the lowest so far by a share.

    The k lowest of N losses are taken to lie exponentially below the next higher one (Pickands,
    "Statistical inference using extreme order statistics" (1975)). The scale s, the mean of their
    distances, is itself an estimate from k values, so the probability that one more loss is lower
    by x is that of a Lomax distribution:

        (k / N) (1 + x / (k s)) ** -k

    Args:
        losses: positive, two at least.
        noise: share of noise in the spread of losses, in [0, 1). A fall by luck does not count,
            so the spread is reduced by this share.
    """
    logs = sorted(math.log(loss) for loss in losses)
    k = min(max(_LEAST_TAIL, round(_TAIL * len(logs))), len(logs) - 1)
    distances = [logs[k] - log for log in logs[:k]]
    total = sum(distances)
    fall = -math.log1p(-share) / (1 - min(noise, _MOST_NOISE))
    if total <= 0:
        return 0.0
    one: float = k / len(logs) * (1 + (distances[0] + fall) / total) ** -k
    return 1 - math.pow(1 - one, n)
