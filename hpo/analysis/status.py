"""What is known of a study at one moment, computed from its trials and signs of life."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ..storage.recovery import Heartbeat
from ..storage.url import shown
from ..study.budget import compute_seconds, why_stop
from ..study.config import Budget, StudyConfig
from ..study.confirmation import Confirmed, confirmed_of
from ..trial.outcome import NO_OUTCOME
from ..trial.ranking import best_trials
from ..trial.recipe import changed_values, recipe_of
from .importance import Importance, ImportanceError, importances

PACE_WINDOW_S = 3600.0


@dataclass(frozen=True)
class Worker:
    """Who holds a running trial."""

    worker: str
    trial: int  # its number
    silent_s: float  # since its last sign of life
    alive: bool  # silent for no longer than the study's grace


@dataclass(frozen=True)
class Best:
    """A complete, feasible trial."""

    trial: int  # its number
    loss: float
    standard_error: float | None  # of the loss
    longest_call_s: float | None
    changed: dict[str, Any] | None  # what its recipe has otherwise than the default, if stored
    params: dict[str, Any]  # that the sampler chose
    cost: float | None = None  # CPU time of an answer, over the plain network's


@dataclass(frozen=True)
class Pace:
    """Finished trials per time in which at least one trial ran; pauses do not count."""

    trials_per_hour: float
    finished: int  # in that time
    active_s: float  # the last hour of such time, or all of it if that is less
    since_start: bool  # whether it is all of it


@dataclass(frozen=True)
class Status:
    """A study at one moment.  These are also the keys of ``--json``."""

    study: str
    storage: str  # the database URL, its password hidden
    at: str  # when, in ISO 8601 with the offset from UTC
    states: dict[str, int]  # trials by Optuna's state; all five are there
    outcomes: dict[str, int]  # finished trials by `Outcome`; those that occur
    finished: int  # complete, pruned and failed trials
    best: tuple[Best, ...]  # lowest loss first
    pace: Pace | None  # null: no trial has run for any time yet
    workers: tuple[Worker, ...]  # by trial
    no_heartbeat: int  # running trials without any sign of life: not of this service
    compute_s: float  # that finished trials took, all together
    budget: dict[str, float]  # the parts that the study file sets, by their names there
    spent: str | None  # which of them is spent
    time_left_s: float | None  # until the budget of trials is spent, at this pace
    time_left_unknown: str | None  # why it is null
    importances: tuple[Importance, ...]  # highest share first
    importances_unknown: str | None  # why there are none
    confirmed: Confirmed | None = None  # null: nothing is


def status_of(
    config: StudyConfig,
    url: str,
    trials: Sequence[FrozenTrial],
    beats: Sequence[Heartbeat],
    now: datetime,
    best: int = 5,
    confirmed: Mapping[str, Any] | None = None,
) -> Status:
    """What is known of a study.

    Args:
        url: where the study is.
        now: aware, or naive local time as Optuna's trials have it.
        best: at most so many of the best trials.
        confirmed: the study's attribute of that name, if it has one.

    Raises:
        UserError: the URL is none.
    """
    by_state = Counter(t.state for t in trials)
    finished = [t for t in trials if t.state.is_finished()]
    workers = tuple(
        Worker(b.worker, b.number, max(0.0, b.age_s), b.age_s <= config.recovery.grace_s)
        for b in beats
    )
    heard = {b.trial_id for b in beats}
    pace = pace_of(trials, beats, config.recovery.grace_s, now)
    left = _time_left(config.budget, len(finished), pace)
    try:
        mattered, why_not = importances(trials), None
    except ImportanceError as error:
        mattered, why_not = (), str(error)
    return Status(
        study=config.name,
        storage=shown(url),
        at=now.astimezone().isoformat(timespec="seconds"),
        states={state.name.lower(): by_state[state] for state in TrialState},
        outcomes=dict(
            Counter(str(t.user_attrs.get("outcome", NO_OUTCOME)) for t in finished).most_common()
        ),
        finished=len(finished),
        best=tuple(_best(t) for t in best_trials(trials, best)),
        pace=pace,
        workers=workers,
        no_heartbeat=sum(
            t.state == TrialState.RUNNING and t._trial_id not in heard for t in trials
        ),
        compute_s=compute_seconds(finished),
        budget=config.budget.model_dump(exclude_none=True),
        spent=_spent(config.budget, finished),
        time_left_s=left if isinstance(left, float) else None,
        time_left_unknown=left if isinstance(left, str) else None,
        importances=mattered,
        importances_unknown=why_not,
        confirmed=None if confirmed is None else confirmed_of(confirmed),
    )


def pace_of(
    trials: Sequence[FrozenTrial], beats: Sequence[Heartbeat], grace_s: float, now: datetime
) -> Pace | None:
    """How quickly trials finish while any runs; None if none has run for any time yet."""
    now_s = now.timestamp()
    last_s = {b.trial_id: now_s - (b.age_s if b.age_s > grace_s else 0.0) for b in beats}
    spans = []
    for trial in trials:
        if trial.datetime_start is None:
            continue
        start_s = trial.datetime_start.timestamp()
        ended = trial.datetime_complete
        end_s = last_s.get(trial._trial_id) if ended is None else ended.timestamp()
        if end_s is not None and end_s > start_s:
            spans.append((start_s, end_s))
    active_s, since_s = 0.0, now_s
    for start_s, end_s in reversed(_union(spans)):
        since_s = max(start_s, end_s - (PACE_WINDOW_S - active_s))
        active_s += end_s - since_s
        if since_s > start_s:
            break
    if active_s <= 0:
        return None
    ends = [t.datetime_complete.timestamp() for t in trials if t.datetime_complete is not None]
    finished = sum(end_s > since_s for end_s in ends)
    since_start = since_s <= min(start_s for start_s, _ in spans)
    return Pace(3600 * finished / active_s, finished, active_s, since_start)


def _union(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time as spans that do not overlap, in order."""
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end_s)
        else:
            merged.append((start_s, end_s))
    return merged


def _time_left(budget: Budget, finished: int, pace: Pace | None) -> float | str:
    """Seconds; or why they are not known."""
    if budget.trials is None:
        return "the study file sets no budget of trials"
    left = budget.trials - finished
    if left <= 0:
        return 0.0
    if pace is None:
        return "no trial has run yet"
    if pace.finished == 0:
        return "no trial has finished in the time that the pace is taken over"
    return 3600 * left / pace.trials_per_hour


def _spent(budget: Budget, finished: Sequence[FrozenTrial]) -> str | None:
    if budget.trials is not None and len(finished) >= budget.trials:
        return f"{budget.trials} trials are finished"
    return why_stop(budget, 0.0, lambda: finished)  # a worker's own clock is not known here


def _best(trial: FrozenTrial) -> Best:
    assert trial.value is not None
    return Best(
        trial=trial.number,
        loss=trial.value,
        standard_error=trial.user_attrs.get("standard_error"),
        longest_call_s=trial.user_attrs.get("longest_call_s"),
        changed=_changed(trial),
        params=dict(trial.params),
        cost=trial.user_attrs.get("cost"),
    )


def _changed(trial: FrozenTrial) -> dict[str, Any] | None:
    try:
        return changed_values(recipe_of(trial))
    except (KeyError, TypeError, ValueError):  # not stored, or of a release with other fields
        return None
