"""What a person's own function is told when a trial ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..components import find_function
from ..process.logging import warn

_LONG_S = 10.0


@dataclass(frozen=True)
class TrialEnded:
    """A trial that has ended, as ``[callbacks] after_trial`` is given it."""

    study: str
    worker: str
    number: int  # of the trial
    outcome: str  # a value of `hpo.trial.outcome.Outcome`
    reason: str | None
    loss: float | None  # of one that was pruned an estimate
    standard_error: float | None
    params: Mapping[str, Any]  # that the sampler chose
    recipe: Mapping[str, Any] | None  # all values; None: they contradict each other
    seconds: float
    is_best: bool  # no complete, feasible trial has a lower loss


AfterTrial = Callable[[TrialEnded], object]


def load_callback(name: str | None) -> AfterTrial | None:
    """The function that a study file names.

    Raises:
        ValueError: it can't be imported, or is none.
    """
    return None if name is None else find_function(name)


def call_back(after_trial: AfterTrial, event: TrialEnded) -> None:
    """Call a person's function; that it fails or takes long is said in the log and nothing else."""
    began = time.monotonic()
    try:
        after_trial(event)
    except Exception as error:
        kind = type(error).__name__
        warn(f"trial {event.number}: the callback after_trial failed: {kind}: {error}")
        return
    if (seconds := time.monotonic() - began) > _LONG_S:
        warn(f"trial {event.number}: the callback after_trial took {seconds:.0f} s")
