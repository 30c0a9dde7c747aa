"""A study at one moment: counts, pace, workers, time left and the best trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ..problem.base import Method, changed_values
from ..pruners.improvement import Outlook, outlook
from ..storage.recovery import Heartbeat
from ..storage.url import shown
from ..study.budget import compute_seconds, why_stop
from ..study.config import Budget, StudyConfig
from ..study.confirmation import BASELINE, Confirmation, read_confirmation
from ..study.control import wishes_in
from ..trial.ranking import best_trials, why_passed_over
from ..trial.run import Run, run_of, runs_of
from ..trial.stored import Remark
from .events import Event, events_of
from .importance import Importance, ImportanceError, importances

PACE_WINDOW_S = 3600.0


@dataclass(frozen=True)
class Worker:
    """A worker that runs a trial."""

    worker: str
    trial: int  # number of the trial
    silent_s: float  # seconds since the last heartbeat
    alive: bool  # whether the last heartbeat is within the study's grace period


@dataclass(frozen=True)
class Best:
    """A complete, feasible trial."""

    trial: int  # number of the trial
    loss: float
    standard_error: float | None  # of the loss
    longest_call_s: float | None
    changed: dict[str, Any] | None  # values that differ from the default; null: not stored
    params: dict[str, Any]  # parameters chosen by the sampler
    cost: float | None = None  # CPU time of an answer, relative to the plain network's


@dataclass(frozen=True)
class Confirmed:
    """The winner of `hpo.confirm`, on instances that no trial was measured on."""

    name: str  # "default", "best 3" (of the search), or a recipe's file
    trial: int | None  # number of its trial; null: no trial ran this recipe
    loss: float
    standard_error: float | None  # over runes
    difference: float | None  # its loss minus the default recipe's; null: it is the default
    low: float | None  # 95 % interval of the difference
    high: float | None

    @property
    def is_default(self) -> bool:
        """Whether the default recipe won."""
        return self.name == BASELINE


@dataclass(frozen=True)
class Pace:
    """Rate of finished trials over the time in which at least one trial ran, without pauses."""

    trials_per_hour: float
    finished: int  # trials finished in that time
    active_s: float  # length of that time: the last hour, or all of it if there is less
    since_start: bool  # whether it is all of the study's time


@dataclass(frozen=True)
class Status:
    """A study at one moment.  These are also the keys of ``--json``."""

    study: str
    storage: str  # URL of the database without its password
    at: str  # the moment, in ISO 8601 with the offset from UTC
    states: dict[str, int]  # number of trials in each of Optuna's five states
    outcomes: dict[str, int]  # number of finished trials by `Outcome`, where there are any
    finished: int  # complete, pruned and failed trials
    best: tuple[Best, ...]  # lowest loss first
    pace: Pace | None  # null: no trial has run yet
    workers: tuple[Worker, ...]  # by trial
    no_heartbeat: int  # running trials without any heartbeat, which another program runs
    compute_s: float  # seconds spent on finished trials, all together
    budget: dict[str, float]  # the parts that are set, by their names in a study file
    spent: str | None  # the part of the budget that is spent
    time_left_s: float | None  # until the budget of trials is spent, at this pace
    time_left_unknown: str | None  # why `time_left_s` is null
    importances: tuple[Importance, ...]  # highest share first
    importances_unknown: str | None  # why there are no importances
    confirmed: Confirmed | None = None  # null: nothing is confirmed, or it can't be read
    confirmed_unreadable: str | None = None  # what is wrong with the stored confirmation
    unreadable: tuple[str, ...] = ()  # what is wrong with attributes of trials and workers
    paused: str | None = None  # who paused the study; null: it is not paused
    controls: tuple[str, ...] = ()  # requests to the study, newest first
    events: tuple[Event, ...] = ()  # who joined, ended or was lost, newest first
    dropped: tuple[int, ...] = ()  # numbers of dropped trials
    kept_calls: int = 0  # stored calls, which are not made again; also of unfinished trials
    outlook: Outlook | None = None  # whether the best loss still falls
    outlook_unknown: str | None = None  # why `outlook` is null


def status_of(
    config: StudyConfig,
    url: str,
    trials: Sequence[FrozenTrial],
    beats: Sequence[Heartbeat],
    now: datetime,
    best: int = 5,
    attrs: Mapping[str, Any] = MappingProxyType({}),
    kept_calls: int = 0,
) -> Status:
    """Compute a study's status.

    Args:
        url: URL of the study's database.
        now: the current time, aware, or naive local time as in Optuna's trials.
        best: most of the best trials to list.
        attrs: user attributes of the study.
        kept_calls: number of the study's stored calls.

    Raises:
        UserError: ``url`` is not a database URL.
    """
    by_state = Counter(t.state for t in trials)
    finished = [t for t in trials if t.state.is_finished()]
    workers = tuple(
        Worker(b.worker, b.number, max(0.0, b.age_s), b.age_s <= config.recovery.grace_s)
        for b in beats
    )
    method = config.load_method()
    runs = runs_of(trials)
    confirmed = read_confirmation(attrs)
    heard = {b.trial_id for b in beats}
    pace = pace_of(trials, beats, config.recovery.grace_s, now)
    wishes = wishes_in(attrs)
    budget = wishes.apply(config.budget)
    left = _time_left(budget, len(finished), pace)
    try:
        mattered, why_not = importances(trials), None
    except ImportanceError as error:
        mattered, why_not = (), str(error)
    events, odd = events_of(attrs, runs, beats, config.recovery.grace_s, now)
    more = outlook(trials)
    if (asked := config.budget.improvement) is not None:
        more = outlook(trials, asked.share, asked.hours)
    return Status(
        study=config.name,
        storage=shown(url),
        at=now.astimezone().isoformat(timespec="seconds"),
        states={state.name.lower(): by_state[state] for state in TrialState},
        outcomes=dict(Counter(r.outcome for r in runs if r.state.is_finished()).most_common()),
        finished=len(finished),
        best=tuple(_best(run_of(t), method) for t in best_trials(trials, best)),
        pace=pace,
        workers=workers,
        no_heartbeat=sum(
            t.state == TrialState.RUNNING and t._trial_id not in heard for t in trials
        ),
        compute_s=compute_seconds(finished),
        budget=budget.parts,
        spent=spent_budget(budget, finished),
        time_left_s=left if isinstance(left, float) else None,
        time_left_unknown=left if isinstance(left, str) else None,
        outlook=more if isinstance(more, Outlook) else None,
        outlook_unknown=more if isinstance(more, str) else None,
        importances=mattered,
        importances_unknown=why_not,
        confirmed=_confirmed(confirmed) if isinstance(confirmed, Confirmation) else None,
        confirmed_unreadable=confirmed.problem if isinstance(confirmed, Remark) else None,
        unreadable=(*_remarks(runs), *map(str, odd)),
        paused=str(wishes.paused) if wishes.paused else None,
        controls=tuple(map(str, reversed(wishes.controls))),
        events=tuple(events),
        dropped=tuple(sorted(wishes.dropped)),
        kept_calls=kept_calls,
    )


def _remarks(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        odd = why_passed_over(run.trial) if run.state.is_finished() else None
        for remark in (*run.record.remarks, *([odd] if odd else [])):
            yield f"trial {run.number}: {remark}"


def pace_of(
    trials: Sequence[FrozenTrial], beats: Sequence[Heartbeat], grace_s: float, now: datetime
) -> Pace | None:
    """The rate at which trials finish while any trial runs; None if no trial has run yet."""
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
    """The union of time spans, as disjoint spans in order."""
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end_s)
        else:
            merged.append((start_s, end_s))
    return merged


def _time_left(budget: Budget, finished: int, pace: Pace | None) -> float | str:
    """Seconds left, or the reason why they are unknown."""
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


def spent_budget(budget: Budget, finished: Sequence[FrozenTrial]) -> str | None:
    """The part of the budget that the finished trials have spent; None if there is none."""
    if budget.trials is not None and len(finished) >= budget.trials:
        return f"{budget.trials} trials are finished"
    spent = why_stop(budget, 0.0, lambda: finished)  # a worker's own clock is unknown here
    return None if spent is None else str(spent)


def _best(run: Run, method: Method) -> Best:
    assert run.trial.value is not None
    recipe = run.recipe(method)
    return Best(
        trial=run.number,
        loss=run.trial.value,
        standard_error=run.standard_error,
        longest_call_s=run.longest_s,
        changed=None if recipe is None else changed_values(recipe, method.fields),
        params=dict(run.params),
        cost=run.cost,
    )


def _confirmed(found: Confirmation) -> Confirmed:
    default = found.comparisons.default
    return Confirmed(
        name=found.name,
        trial=found.trial,
        loss=found.loss,
        standard_error=found.standard_error,
        difference=default.difference if default else None,
        low=default.low if default else None,
        high=default.high if default else None,
    )
