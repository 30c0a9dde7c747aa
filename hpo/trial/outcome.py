"""How trials end, and which of Optuna's states stands for each end.

A recipe's own failures (a loss that is not finite, memory, time) are stored as pruned *and*
infeasible, so that samplers learn to avoid them: samplers ignore failed trials.  A trial counts as
failed only if the recipe is not the cause: a bug, or workers that were lost too often.
"""

from __future__ import annotations

import enum
import traceback
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from ..problem.base import CallFailedError, NotFiniteError, OutOfTimeError

_TRACEBACK_CHARS = 8000


class Outcome(enum.StrEnum):
    """How a trial ended; the trial's user attribute ``outcome``."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    INFEASIBLE = "infeasible"  # a call took too long, or an answer of the network costs too much
    NOT_FINITE = "not finite"
    OUT_OF_MEMORY = "out of memory"
    OUT_OF_TIME = "out of time"  # a call was stopped at the limit
    CRASHED = "crashed"  # the method's own code failed
    LOST_WORKER = "lost worker"
    BUG = "bug"

    @property
    def state(self) -> TrialState:
        """Optuna's state for this outcome."""
        if self is Outcome.COMPLETE:
            return TrialState.COMPLETE
        return TrialState.FAIL if self in (Outcome.LOST_WORKER, Outcome.BUG) else TrialState.PRUNED

    @property
    def is_recipes_fault(self) -> bool:
        """Whether the recipe could not be measured at all."""
        return self in _RECIPES_FAULTS

    @property
    def is_workers_trouble(self) -> bool:
        """Whether several of these in a row mean that the worker is at fault, not its recipes."""
        return self in (Outcome.BUG, Outcome.OUT_OF_MEMORY)


_RECIPES_FAULTS = (
    Outcome.CRASHED,
    Outcome.NOT_FINITE,
    Outcome.OUT_OF_MEMORY,
    Outcome.OUT_OF_TIME,
)


class TrialEndedError(Exception):
    """Raised while a trial runs, to end it.

    Args:
        value: estimate of the loss of the whole trial.
    """

    def __init__(self, outcome: Outcome, reason: str, value: float | None = None) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason
        self.value = value


@dataclass(frozen=True)
class Ending:
    """A trial's end, as it is stored."""

    outcome: Outcome
    reason: str = ""
    value: float | None = None
    traceback: str | None = None  # of a bug; or the output of a user's file


def ending_of(error: Exception) -> Ending:
    """Translate an exception that left a trial into the trial's end."""
    if isinstance(error, TrialEndedError):
        return Ending(error.outcome, error.reason, error.value)
    # A method that runs in a process of its own puts its output into the notes.
    said = "\n".join(getattr(error, "__notes__", ()))[-_TRACEBACK_CHARS:] or None
    if isinstance(error, OutOfTimeError):
        return Ending(Outcome.OUT_OF_TIME, str(error), traceback=said)
    if isinstance(error, NotFiniteError):
        return Ending(Outcome.NOT_FINITE, str(error), traceback=said)
    if isinstance(error, CallFailedError):
        return Ending(Outcome.CRASHED, str(error), traceback=said)
    if isinstance(error, optuna.TrialPruned):
        return Ending(Outcome.PRUNED, str(error))
    if _is_lack_of_memory(error):
        return Ending(Outcome.OUT_OF_MEMORY, _first_line(error))
    trace = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARS:]
    return Ending(Outcome.BUG, _first_line(error), traceback=trace)


def _is_lack_of_memory(error: Exception) -> bool:
    # Compared by name, because importing torch for one class is slow.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in words for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


NO_OUTCOME = "not recorded"  # shown for trials that another program ended
