"""Transactions on studies and trials: create, queue, claim, report, finish.

Each function is the body of one transaction. It may be repeated after it has succeeded, because a
commit is retried if its answer got lost.
"""

from __future__ import annotations

import enum
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import TrialState

from . import tables as db
from .calls import CallRow, write_calls
from .errors import TrialTakenError
from .optuna_internals import stored_report, stored_value
from .presence import Identity
from .statements import (
    insert,
    is_held_by,
    is_owned_by,
    lock_study,
    set_attrs,
    set_worker,
    upsert,
)

WORKERS_KEY = "hpo:workers"  # system attribute of a study: how many workers have joined
FIXED_PARAMS_KEY = "fixed_params"  # Optuna's system attribute of a queued trial


class NoTrial(enum.Enum):
    """Why there is no trial to run."""

    SPENT = "as many trials are finished as the budget has"
    FULL = "those that are running will spend the budget, if none of them is lost"


@dataclass
class Writes:
    """Writes to one trial, made in one transaction."""

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    user_attrs: dict[str, Any] = field(default_factory=dict)
    system_attrs: dict[str, Any] = field(default_factory=dict)
    reports: dict[int, float] = field(default_factory=dict)
    calls: list[CallRow] = field(default_factory=list)  # stored if the database has their table
    state: TrialState | None = None  # the trial's new state; None: it keeps running
    values: Sequence[float] | None = None

    def add(self, more: Writes) -> None:
        """Add parameters, attributes and reports; the newest of each name counts."""
        self.params.update(more.params)
        self.user_attrs.update(more.user_attrs)
        self.system_attrs.update(more.system_attrs)
        self.reports.update(more.reports)


@dataclass(frozen=True)
class TakenTrial:
    """A finished trial of another study, to be written into this one."""

    writes: Writes
    started: datetime | None  # naive UTC, as the tables store it
    ended: datetime | None


@dataclass(frozen=True)
class Taken:
    """Trials and calls taken over from another study; the calls' ``study_id`` is ignored."""

    trials: Sequence[TakenTrial]
    calls: Sequence[CallRow]


def create_study(
    c: sa.Connection,
    name: str,
    attrs: Mapping[str, Any],
    queue: Sequence[Mapping[str, Any]],
    taken: Taken | None = None,
) -> bool:
    """Create a study with its attributes and first trials; false if one of that name exists.

    Args:
        queue: parameters of the trials that run first, in this order.
        taken: trials and calls of another study that this one takes over.
    """
    found = c.execute(sa.select(db.STUDIES.c.study_id).where(db.STUDIES.c.study_name == name))
    if found.first():
        return False
    study_id = insert(c, db.STUDIES, {"study_name": name})
    direction = {"study_id": study_id, "objective": 0, "direction": StudyDirection.MINIMIZE}
    insert(c, db.DIRECTIONS, direction)
    set_attrs(c, db.STUDY_USER_ATTRS, {"study_id": study_id}, attrs)
    trials = taken.trials if taken else ()
    for number, trial in enumerate(trials):
        times = {"datetime_start": trial.started, "datetime_complete": trial.ended}
        row = {"study_id": study_id, "number": number, "state": trial.writes.state, **times}
        _write_parts(c, insert(c, db.TRIALS, row), trial.writes)
    if taken and taken.calls:
        write_calls(c, [replace(row, study_id=study_id) for row in taken.calls])
    for number, parameters in enumerate(queue, start=len(trials)):
        row = {"study_id": study_id, "number": number, "state": TrialState.WAITING}
        trial_id = insert(c, db.TRIALS, row)
        set_attrs(c, db.SYSTEM_ATTRS, {"trial_id": trial_id}, {FIXED_PARAMS_KEY: dict(parameters)})
    return True


def queue_once(
    c: sa.Connection, study_id: int, parameters: Mapping[str, Any], token: str | None = None
) -> bool:
    """Queue a trial of these parameters; false if an unfinished trial was queued with them.

    Args:
        token: token of the study, as in `lock_study`.

    Raises:
        KeyError: there is no such study.
    """
    lock_study(c, study_id, token)
    queued = (
        sa.select(db.SYSTEM_ATTRS.c.value_json)
        .join(db.TRIALS, db.TRIALS.c.trial_id == db.SYSTEM_ATTRS.c.trial_id)
        .where(
            db.TRIALS.c.study_id == study_id,
            db.TRIALS.c.state.in_((TrialState.RUNNING, TrialState.WAITING)),
            db.SYSTEM_ATTRS.c.key == FIXED_PARAMS_KEY,
        )
    )
    if any(json.loads(text) == dict(parameters) for text in c.execute(queued).scalars()):
        return False
    _queue(c, study_id, parameters)
    return True


def queue_starts(
    c: sa.Connection,
    study_id: int,
    starts: Sequence[Mapping[str, Any]],
    token: str | None = None,
) -> int:
    """Queue the starting trials that were never queued in this study; returns how many.

    Args:
        token: token of the study, as in `lock_study`.

    Raises:
        KeyError: there is no such study.
    """
    lock_study(c, study_id, token)
    attrs = db.SYSTEM_ATTRS
    query = (
        sa.select(attrs.c.value_json)
        .join(db.TRIALS, db.TRIALS.c.trial_id == attrs.c.trial_id)
        .where(db.TRIALS.c.study_id == study_id, attrs.c.key == FIXED_PARAMS_KEY)
    )
    queued = [json.loads(text) for text in c.execute(query).scalars()]
    # A trial that was queued again has all its parameters in this attribute.
    new = [s for s in starts if not any(s.items() <= q.items() for q in queued)]
    for parameters in new:
        _queue(c, study_id, parameters)
    return len(new)


def queue(
    c: sa.Connection, study_id: int, parameters: Mapping[str, Any], token: str | None = None
) -> int:
    """Queue a trial of these parameters; returns its number.

    Raises:
        KeyError: there is no such study.
    """
    lock_study(c, study_id, token)
    return _queue(c, study_id, parameters)


def _queue(c: sa.Connection, study_id: int, parameters: Mapping[str, Any]) -> int:
    number = _count_trials(c, study_id)
    row = {"study_id": study_id, "number": number, "state": TrialState.WAITING}
    trial = {"trial_id": insert(c, db.TRIALS, row)}
    set_attrs(c, db.SYSTEM_ATTRS, trial, {FIXED_PARAMS_KEY: dict(parameters)})
    return number


def identify(c: sa.Connection, study_id: int) -> Identity:
    """The study's identity; it gets one if it has none.

    Raises:
        KeyError: there is no such study.
    """
    lock_study(c, study_id)
    name = c.execute(
        sa.select(db.STUDIES.c.study_name).where(db.STUDIES.c.study_id == study_id)
    ).scalar_one()
    token = _study_attr(c, study_id, db.IDENTITY_KEY)
    if token is None:
        token = uuid.uuid4().hex
        set_attrs(c, db.STUDY_SYSTEM_ATTRS, {"study_id": study_id}, {db.IDENTITY_KEY: token})
    return Identity(name, str(token))


def join(c: sa.Connection, study_id: int, token: str | None = None) -> int:
    """Give a worker an ordinal in the study, from 0, that no other worker ever gets.

    Raises:
        KeyError: there is no such study.
    """
    lock_study(c, study_id, token)
    ordinal = int(_study_attr(c, study_id, WORKERS_KEY) or 0)
    attrs = {WORKERS_KEY: ordinal + 1}
    set_attrs(c, db.STUDY_SYSTEM_ATTRS, {"study_id": study_id}, attrs)
    return ordinal


def set_study_user_attr(
    c: sa.Connection, study_id: int, key: str, value: Any, token: str | None = None
) -> None:
    """Set a user attribute of a study.

    Raises:
        KeyError: there is no such study.
    """
    lock_study(c, study_id, token)
    set_attrs(c, db.STUDY_USER_ATTRS, {"study_id": study_id}, {key: value})


def _study_attr(c: sa.Connection, study_id: int, key: str) -> Any:
    """A study's system attribute; None if it has none of that name."""
    attrs = db.STUDY_SYSTEM_ATTRS
    query = sa.select(attrs.c.value_json).where(attrs.c.study_id == study_id, attrs.c.key == key)
    text = c.execute(query).scalar()
    return None if text is None else json.loads(text)


def claim(
    c: sa.Connection,
    study_id: int,
    worker: str,
    budget: int | None,
    again: bool = False,
    token: str | None = None,
) -> int | NoTrial:
    """Claim a trial for a worker, a queued one or else a new one, and return its id.

    There are never more than ``budget`` finished and running trials, so exactly that many finish
    with any number of workers. Workers claim one after another, so no statement here may read all
    trials of the study.

    Args:
        again: whether this is a retry, after an attempt that may have succeeded.
        token: token of the study, as in `lock_study`.

    Raises:
        KeyError: there is no such study.
    """
    lock_study(c, study_id, token)
    if again:
        mine = sa.select(db.TRIALS.c.trial_id).where(
            db.TRIALS.c.study_id == study_id, is_held_by(worker)
        )
        if (held := c.execute(mine).scalar()) is not None:
            return int(held)
    counts = _count_unfinished(c, study_id)
    total = _count_trials(c, study_id)
    finished = total - sum(counts.values())
    if budget is not None and finished >= budget:
        return NoTrial.SPENT
    if budget is not None and finished + counts.get(TrialState.RUNNING, 0) >= budget:
        return NoTrial.FULL
    running = {"state": TrialState.RUNNING, "datetime_start": db.utc_now()}
    if counts.get(TrialState.WAITING):
        waiting = sa.select(sa.func.min(db.TRIALS.c.trial_id)).where(
            db.TRIALS.c.study_id == study_id, db.TRIALS.c.state == TrialState.WAITING
        )
        trial_id = int(c.execute(waiting).scalar_one())
        c.execute(sa.update(db.TRIALS).where(db.TRIALS.c.trial_id == trial_id).values(running))
    else:
        trial_id = insert(c, db.TRIALS, {"study_id": study_id, "number": total, **running})
    set_worker(c, trial_id, worker)
    return trial_id


def _count_unfinished(c: sa.Connection, study_id: int) -> dict[TrialState, int]:
    """How many trials are running and how many are queued; a state without trials is left out."""
    rows = c.execute(
        sa.select(db.TRIALS.c.state, sa.func.count())
        .where(
            db.TRIALS.c.study_id == study_id,
            db.TRIALS.c.state.in_((TrialState.RUNNING, TrialState.WAITING)),
        )
        .group_by(db.TRIALS.c.state)
    )
    return {state: n for state, n in rows}


def _count_trials(c: sa.Connection, study_id: int) -> int:
    # Counted by the newest trial's number: numbers are consecutive, and trials are never deleted.
    newest = sa.select(sa.func.max(db.TRIALS.c.trial_id)).where(db.TRIALS.c.study_id == study_id)
    number = c.execute(
        sa.select(db.TRIALS.c.number).where(db.TRIALS.c.trial_id == newest.scalar_subquery())
    ).scalar()
    return 0 if number is None else int(number) + 1


def write(
    c: sa.Connection,
    trial_id: int,
    worker: str,
    writes: Writes,
    was_claimed: bool = True,
    again: bool = False,
) -> None:
    """Make all writes to a trial, its end included.

    Args:
        worker: who writes; with an empty name any unfinished trial may be written to.
        was_claimed: whether the worker has ever claimed this trial. If so, it may write only while
            the trial is still its own; if not, also while no worker has it, as in Optuna's own
            loop.
        again: whether this is a retry, after an attempt that may have succeeded.

    Raises:
        KeyError: there is no such trial, and the worker never claimed it.
        TrialTakenError: the trial is finished, deleted, or another worker's; nothing is written.
    """
    ids = {"of_trial": trial_id, "of_worker": json.dumps(worker)}
    at = db.utc_now() if writes.state is not None and writes.state.is_finished() else None
    if writes.state is None:
        held = c.execute(_HOLD, ids)
    else:
        held = c.execute(_END, {**ids, "end": writes.state, "at": at})
    if held.rowcount != 1:
        try:
            state, owner = _lock_trial(c, trial_id)
        except KeyError as error:
            if not was_claimed:
                raise
            raise TrialTakenError("the trial was deleted, or its whole study") from error
        if again and writes.state == state and owner == (worker or owner):
            return
        is_free = not worker or (owner is None and not was_claimed)
        if state.is_finished() or not is_free:
            raise TrialTakenError("the trial was ended or taken over by someone else")
        if writes.state is not None:
            changes = {"state": writes.state, "datetime_complete": at}
            c.execute(sa.update(db.TRIALS).where(db.TRIALS.c.trial_id == trial_id).values(changes))
    _write_parts(c, trial_id, writes)
    write_calls(c, writes.calls)


def _write_parts(c: sa.Connection, trial_id: int, writes: Writes) -> None:
    """Write a trial's parameters, attributes, reports and values."""
    params = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": value,
            "distribution_json": distribution_to_json(distribution),
        }
        for name, (value, distribution) in writes.params.items()
    ]
    upsert(c, db.PARAMS, ("trial_id", "param_name"), params)
    trial = {"trial_id": trial_id}
    set_attrs(c, db.USER_ATTRS, trial, writes.user_attrs)
    set_attrs(c, db.SYSTEM_ATTRS, trial, writes.system_attrs)
    reports = []
    for step, number in writes.reports.items():
        value, kind = stored_report(number)
        report = {"intermediate_value": value, "intermediate_value_type": kind}
        reports.append({"trial_id": trial_id, "step": step, **report})
    upsert(c, db.INTERMEDIATE, ("trial_id", "step"), reports)
    values = []
    for objective, number in enumerate(writes.values or ()):
        value, kind = stored_value(number)
        final = {"value": value, "value_type": kind}
        values.append({"trial_id": trial_id, "objective": objective, **final})
    upsert(c, db.VALUES, ("trial_id", "objective"), values)


def _lock_trial(c: sa.Connection, trial_id: int) -> tuple[TrialState, str | None]:
    """Lock a trial until the transaction ends; returns its state and worker.

    Raises:
        KeyError: there is no such trial.
    """
    # A write that changes nothing, as in `lock_study`.
    state = db.TRIALS.c.state
    c.execute(sa.update(db.TRIALS).where(db.TRIALS.c.trial_id == trial_id).values({state: state}))
    owner = sa.and_(
        db.SYSTEM_ATTRS.c.trial_id == db.TRIALS.c.trial_id, db.SYSTEM_ATTRS.c.key == db.WORKER_KEY
    )
    row = c.execute(
        sa.select(state, db.SYSTEM_ATTRS.c.value_json)
        .select_from(db.TRIALS.outerjoin(db.SYSTEM_ATTRS, owner))
        .where(db.TRIALS.c.trial_id == trial_id)
    ).first()
    if row is None:
        raise KeyError(f"no trial has the id {trial_id}")
    return row[0], None if row[1] is None else str(json.loads(row[1]))


# Statements of every report, built once, because building one takes longer than running it.
_MINE_RUNNING = sa.and_(
    db.TRIALS.c.trial_id == sa.bindparam("of_trial", type_=sa.Integer),
    is_owned_by(sa.bindparam("of_worker", type_=sa.Text)),
    db.TRIALS.c.state == TrialState.RUNNING,
)
_HOLD = sa.update(db.TRIALS).where(_MINE_RUNNING).values(state=TrialState.RUNNING)
_END = (
    sa.update(db.TRIALS)
    .where(_MINE_RUNNING)
    .values(state=sa.bindparam("end"), datetime_complete=sa.bindparam("at"))
)
