"""Is another hour worth it: how probable it is that the best loss still falls.

It goes by the study's own trials: how the best of them are spread, how much of that is noise, and
how many more trials an hour of compute makes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from ..trial.ranking import is_feasible, loss_of
from ..trial.record import compute_s

SHARE = 0.01  # of the best loss, by which it is to fall
HOURS = 1.0
LEAST_TRIALS = 12  # with a loss, before anything is said
_PROGRESS = 2.0  # standard errors by which later losses are lower, for earlier ones not to count
_TAIL = 0.15  # of the trials that tell how good ones are spread
_LEAST_TAIL = 3
_RECENT = 50  # trials whose mean seconds are those of the next ones
_MOST_NOISE = 0.9


@dataclass(frozen=True)
class Outlook:
    """How probable it is that the best loss falls.

    Args:
        chance: in [0, 1].
        share: of the best loss, by which it would fall.
        hours: of compute, in which it would.
        trials: that so much compute makes.
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
    """What the finished trials of a study say, or why they say nothing.

    Pruned trials count with the loss that is predicted of them.

    Args:
        share: of the best loss, by which it is to fall.
        hours: of compute, the seconds of trials on all workers together.
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
    """The later losses, as far back as the search has made no progress since.

    While the later half of the losses is lower than the earlier one (Mann and Whitney (1947), by
    the normal approximation), the earlier one does not tell what is tried next.

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
    """The probability that the least of ``n`` more losses is lower by a share than that of these.

    The lowest of the losses lie below the next higher one as an exponential distribution says,
    whose scale is known from so many alone: the probability that one more is lower by x is

        (k / N) (1 + x / (k s)) ** -k

    with the mean s of the k lowest ones' distances (Lomax; Pickands, "Statistical inference using
    extreme order statistics" (1975), for the exponential tail).

    Args:
        losses: positive, two at least.
        noise: share of noise in the spread of losses, in [0, 1): a loss that is measured anew
            falls by so much less.
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
