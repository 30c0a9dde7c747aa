"""When workers stop, by the budget of a study.

The number of trials is enforced exactly by `hpo.storage.transactions.claim`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from ..pruners.improvement import Outlook, outlook
from ..trial.ranking import best_trials
from ..trial.record import compute_s
from .config import Budget


@dataclass(frozen=True)
class Spent:
    """A part of a budget that is spent."""

    part: str  # a field of `Budget`
    words: str  # a sentence for people

    def __str__(self) -> str:
        return self.words


def why_stop(
    budget: Budget, elapsed_s: float, trials: Callable[[], Sequence[FrozenTrial]]
) -> Spent | None:
    """Which part of the budget is spent; None while none is.

    Args:
        elapsed_s: wall-clock seconds of this worker.
        trials: returns the finished trials; called only if the budget depends on them.
    """
    if budget.seconds is not None and elapsed_s >= budget.seconds:
        return Spent("seconds", f"{budget.seconds:g} s of this worker's time are over")
    kinds = (budget.compute_seconds, budget.target, budget.stagnation, budget.improvement)
    if all(kind is None for kind in kinds):
        return None
    finished = [t for t in trials() if t.state.is_finished()]
    if budget.compute_seconds is not None:
        used_s = compute_seconds(finished)
        if used_s >= budget.compute_seconds:
            words = f"{used_s:.0f} s of compute are spent, of {budget.compute_seconds:g}"
            return Spent("compute_seconds", words)
    if budget.improvement is not None:
        wanted = budget.improvement
        found = outlook(finished, wanted.share, wanted.hours)
        if isinstance(found, Outlook) and found.chance < wanted.chance:
            words = f"{found}; the study goes on from {wanted.chance:.2g}"
            return Spent("improvement", words)
    best = next(iter(best_trials(finished, 1)), None)
    if best is None or best.value is None or best.datetime_complete is None:
        return None
    if budget.target is not None and best.value <= budget.target:
        words = f"trial {best.number} reached {best.value:.4f}; the target is {budget.target:g}"
        return Spent("target", words)
    if budget.stagnation is not None:
        since = sum(_ended_after(t, best) for t in finished)
        if since >= budget.stagnation:
            return Spent("stagnation", f"{since} trials since the best, trial {best.number}")
    return None


def compute_seconds(trials: Sequence[FrozenTrial]) -> float:
    """Seconds spent on finished trials, all together, with their unfinished attempts.  Calls that
    were read instead of made took no time."""
    return sum(compute_s(t) for t in trials)


def _ended_after(trial: FrozenTrial, best: FrozenTrial) -> bool:
    assert trial.datetime_complete is not None
    assert best.datetime_complete is not None
    return (trial.datetime_complete, trial.number) > (best.datetime_complete, best.number)
