"""The callback of a study file: a user's function that is called when a trial ends."""

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
    """A trial that has ended; the argument of ``[callbacks] after_trial``."""

    study: str
    worker: str
    number: int  # trial number
    outcome: str  # a value of `hpo.trial.outcome.Outcome`
    reason: str | None
    loss: float | None  # estimated if the trial was pruned
    standard_error: float | None
    params: Mapping[str, Any]  # chosen by the sampler
    recipe: Mapping[str, Any] | None  # all values; None if they contradict each other
    seconds: float
    is_best: bool  # whether no complete, feasible trial has a lower loss


AfterTrial = Callable[[TrialEnded], object]


def load_callback(name: str | None) -> AfterTrial | None:
    """Import the function that a study file names.

    Raises:
        ValueError: it can't be imported, or it is not a function.
    """
    return None if name is None else find_function(name)


def call_back(after_trial: AfterTrial, event: TrialEnded) -> None:
    """Call a user's function. If it fails or takes long, that is logged and has no other effect."""
    began = time.monotonic()
    try:
        after_trial(event)
    except Exception as error:
        kind = type(error).__name__
        warn(f"trial {event.number}: the callback after_trial failed: {kind}: {error}")
        return
    if (seconds := time.monotonic() - began) > _LONG_S:
        warn(f"trial {event.number}: the callback after_trial took {seconds:.0f} s")
