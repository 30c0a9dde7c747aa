"""Heartbeats of running trials, and how a trial is queued again: released or reclaimed.

A trial that is released or lost stays the same row, with its parameters, and its calls are in the
table of calls. The next worker goes on from there under the same trial number. Each function is the
body of one transaction and may be repeated after it has succeeded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState

from . import tables as db
from .calls import count_of_trial
from .dialects import dialect_of
from .statements import is_held_by, set_attrs
from .transactions import FIXED_PARAMS_KEY

ATTEMPTS_KEY = "attempts"  # user attribute of a trial: its unfinished attempts


@dataclass(frozen=True)
class Heartbeat:
    """A running trial's latest heartbeat."""

    trial_id: int
    number: int
    worker: str
    at: datetime  # by the database's clock
    age_s: float


def beat(c: sa.Connection, trial_id: int, worker: str) -> bool:
    """Write a heartbeat; false if the trial is no longer this worker's."""
    mine = sa.exists().where(db.TRIALS.c.trial_id == trial_id, is_held_by(worker))
    beaten = c.execute(
        sa.update(db.HEARTBEATS)
        .where(db.HEARTBEATS.c.trial_id == trial_id, mine)
        .values(heartbeat=dialect_of(c).now())
    )
    return beaten.rowcount == 1


def heartbeats(c: sa.Connection, study_id: int) -> list[Heartbeat]:
    """The heartbeats of all running trials that workers of this service hold."""
    now = _aware(c.execute(sa.select(dialect_of(c).now())).scalar_one())
    query = (
        sa.select(
            db.TRIALS.c.trial_id,
            db.TRIALS.c.number,
            db.SYSTEM_ATTRS.c.value_json,
            db.HEARTBEATS.c.heartbeat,
        )
        .join(db.HEARTBEATS, db.HEARTBEATS.c.trial_id == db.TRIALS.c.trial_id)
        .join(db.SYSTEM_ATTRS, db.SYSTEM_ATTRS.c.trial_id == db.TRIALS.c.trial_id)
        .where(
            db.TRIALS.c.study_id == study_id,
            db.TRIALS.c.state == TrialState.RUNNING,
            db.SYSTEM_ATTRS.c.key == db.WORKER_KEY,
        )
        .order_by(db.TRIALS.c.trial_id)
    )
    return [
        Heartbeat(trial_id, number, json.loads(worker), at, (now - _aware(at)).total_seconds())
        for trial_id, number, worker, at in c.execute(query)
    ]


def release(
    c: sa.Connection, study_id: int, worker: str, why: str, keeps_calls: bool = False
) -> list[int]:
    """Queue this worker's trials again; returns their numbers.

    Args:
        keeps_calls: whether this worker can read the table of calls.
    """
    query = sa.select(db.TRIALS.c.trial_id, db.TRIALS.c.number).where(
        db.TRIALS.c.study_id == study_id, is_held_by(worker)
    )
    held = c.execute(query).all()
    for trial_id, _ in held:
        attempt = {"worker": worker, "why": why, "lost": False}
        attempt |= _progress(c, trial_id, db.utc_now(), keeps_calls)
        _queue_again(c, trial_id, worker, sa.true(), attempt)
    return [number for _, number in held]


def reclaim(
    c: sa.Connection, lost: Heartbeat, retries: int, keeps_calls: bool = False
) -> TrialState | None:
    """Queue a lost worker's trial again, or fail it for good after ``retries`` such losses.

    Losses before the latest stored call do not count: if a trial makes progress, it is not the
    reason why its workers vanish.

    Args:
        lost: the heartbeat that was too old.
        keeps_calls: as in `release`.

    Returns:
        The trial's new state; None if its worker wrote a heartbeat, or another worker was first.
    """
    attempts = _attempts(c, lost.trial_id)
    progress = _progress(c, lost.trial_id, _aware(lost.at).replace(tzinfo=None), keeps_calls)
    attempt = {"worker": lost.worker, "why": "lost worker", "lost": True, **progress}
    unchanged = sa.exists().where(
        db.HEARTBEATS.c.trial_id == lost.trial_id, db.HEARTBEATS.c.heartbeat == lost.at
    )
    vain = [a for a in attempts if a["lost"] and a.get("calls", 0) == progress["calls"]]
    if len(vain) < retries:
        is_queued = _queue_again(c, lost.trial_id, lost.worker, unchanged, attempt)
        return TrialState.WAITING if is_queued else None
    failed = c.execute(
        sa.update(db.TRIALS)
        .where(db.TRIALS.c.trial_id == lost.trial_id, is_held_by(lost.worker), unchanged)
        # The attempt lasted until its last heartbeat, however late the loss was noticed.
        .values(state=TrialState.FAIL, datetime_complete=lost.at)
    )
    if failed.rowcount != 1:
        return None
    reason = f"its worker was lost {len(vain) + 1} times"
    if progress["calls"]:
        reason += " without another call"
    attrs = {"outcome": "lost worker", "reason": reason, ATTEMPTS_KEY: [*attempts, attempt]}
    set_attrs(c, db.USER_ATTRS, {"trial_id": lost.trial_id}, attrs)
    return TrialState.FAIL


def _progress(
    c: sa.Connection, trial_id: int, until: datetime, keeps_calls: bool
) -> dict[str, Any]:
    """A trial's number of stored calls, the seconds of the attempt that ends, and its end.

    Args:
        until: end of the attempt, in naive UTC.
    """
    started = c.execute(
        sa.select(db.TRIALS.c.datetime_start).where(db.TRIALS.c.trial_id == trial_id)
    ).scalar()
    seconds = 0.0 if started is None else max(0.0, (until - started).total_seconds())
    calls = count_of_trial(c, trial_id) if keeps_calls else 0
    at = until.replace(tzinfo=UTC).isoformat(timespec="milliseconds")
    return {"calls": calls, "seconds": round(seconds, 3), "at": at}


def _queue_again(
    c: sa.Connection,
    trial_id: int,
    worker: str,
    condition: sa.ColumnElement[bool],
    attempt: dict[str, Any],
) -> bool:
    """Queue a running trial again with nothing but its parameters; false if another has it."""
    queued = c.execute(
        sa.update(db.TRIALS)
        .where(db.TRIALS.c.trial_id == trial_id, is_held_by(worker), condition)
        .values(state=TrialState.WAITING, datetime_start=None)
    )
    if queued.rowcount != 1:
        return False
    attempts = _attempts(c, trial_id)
    for rows in (db.USER_ATTRS, db.INTERMEDIATE, db.VALUES, db.HEARTBEATS):
        c.execute(sa.delete(rows).where(rows.c.trial_id == trial_id))
    attrs = db.SYSTEM_ATTRS
    c.execute(sa.delete(attrs).where(attrs.c.trial_id == trial_id, attrs.c.key != FIXED_PARAMS_KEY))
    set_attrs(c, db.USER_ATTRS, {"trial_id": trial_id}, {ATTEMPTS_KEY: [*attempts, attempt]})
    return True


def _attempts(c: sa.Connection, trial_id: int) -> list[dict[str, Any]]:
    query = sa.select(db.USER_ATTRS.c.value_json).where(
        db.USER_ATTRS.c.trial_id == trial_id, db.USER_ATTRS.c.key == ATTEMPTS_KEY
    )
    return list(json.loads(c.execute(query).scalar() or "[]"))


def _aware(moment: datetime) -> datetime:
    # Connections are set to UTC; SQLite has no other time zone.
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
