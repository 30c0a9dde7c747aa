"""What happens to a trial in the database: claimed, written, finished, handed back, lost.

Each function is one transaction's work and may be run again on top of its own effects, because
a commit whose answer got lost is tried again.  A trial is one row from first to last: whoever
hands it back or loses it leaves its parameters, nothing else, and the next worker goes on from
there under the same number.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.dialects import postgresql, sqlite

from . import tables as db

WORKER_KEY = "hpo:worker"  # system attribute of a trial: whose it is
WORKERS_KEY = "hpo:workers"  # system attribute of a study: how many have joined
ATTEMPTS_KEY = "attempts"  # user attribute of a trial: those that did not finish it
_FIXED_PARAMS_KEY = "fixed_params"  # Optuna's, of a trial that was queued


class TrialTakenError(UpdateFinishedTrialError):
    """The trial is no longer this worker's: it was ended, or given to another."""


class NoTrial(enum.Enum):
    """Why there is no trial to run."""

    SPENT = "as many trials are finished as the budget has"
    FULL = "those that are running will spend the budget, if none of them is lost"


@dataclass
class Writes:
    """What is to be written about one trial, in one transaction."""

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    user_attrs: dict[str, Any] = field(default_factory=dict)
    system_attrs: dict[str, Any] = field(default_factory=dict)
    reports: dict[int, float] = field(default_factory=dict)
    state: TrialState | None = None  # the trial's end
    values: Sequence[float] | None = None


@dataclass(frozen=True)
class Beat:
    """A running trial's sign of life."""

    trial_id: int
    number: int
    worker: str
    at: datetime  # the database's clock
    age_s: float


def create_study(
    c: sa.Connection, name: str, attrs: Mapping[str, Any], queue: Sequence[Mapping[str, Any]]
) -> bool:
    """Create a study with its attributes and first recipes; false if there is one of that name."""
    found = c.execute(sa.select(db.STUDIES.c.study_id).where(db.STUDIES.c.study_name == name))
    if found.first():
        return False
    inserted = c.execute(sa.insert(db.STUDIES).values(study_name=name))
    study_id = _key_of(inserted)
    c.execute(
        sa.insert(db.DIRECTIONS).values(
            study_id=study_id, objective=0, direction=StudyDirection.MINIMIZE
        )
    )
    for key, value in attrs.items():
        _upsert(c, db.STUDY_USER_ATTRS, {"study_id": study_id, "key": key}, _json(value))
    for number, parameters in enumerate(queue):
        trial_id = _insert_trial(c, study_id, number, TrialState.WAITING)
        _set_attrs(c, db.SYSTEM_ATTRS, trial_id, {_FIXED_PARAMS_KEY: dict(parameters)})
    return True


def join_study(c: sa.Connection, study_id: int) -> int:
    """This worker's ordinal in the study, from 0: nobody else's, now or later."""
    _lock_study(c, study_id)
    attrs = db.STUDY_SYSTEM_ATTRS
    query = sa.select(attrs.c.value_json).where(
        attrs.c.study_id == study_id, attrs.c.key == WORKERS_KEY
    )
    ordinal = int(json.loads(c.execute(query).scalar() or "0"))
    _upsert(c, attrs, {"study_id": study_id, "key": WORKERS_KEY}, _json(ordinal + 1))
    return ordinal


def claim(
    c: sa.Connection, study_id: int, worker: str, budget: int | None, again: bool = False
) -> int | NoTrial:
    """The id of a trial that is now this worker's: a queued one, else a new one.

    Never are more trials finished and running together than ``budget``, so that exactly that
    many finish, however many workers there are.  All workers pass here one after another, so no
    statement may look at all trials of the study.

    Args:
        again: an earlier claim of this worker's may have succeeded, its answer got lost.
    """
    _lock_study(c, study_id)
    if again:
        mine = sa.select(db.TRIALS.c.trial_id).where(
            db.TRIALS.c.study_id == study_id,
            db.TRIALS.c.state == TrialState.RUNNING,
            _is_claimed_by(worker),
        )
        if (held := c.execute(mine).scalar()) is not None:
            return int(held)
    counts = unfinished(c, study_id)
    total = _count_trials(c, study_id)
    finished = total - sum(counts.values())
    if budget is not None and finished >= budget:
        return NoTrial.SPENT
    if budget is not None and finished + counts.get(TrialState.RUNNING, 0) >= budget:
        return NoTrial.FULL
    if counts.get(TrialState.WAITING):
        waiting = sa.select(sa.func.min(db.TRIALS.c.trial_id)).where(
            db.TRIALS.c.study_id == study_id, db.TRIALS.c.state == TrialState.WAITING
        )
        trial_id = int(c.execute(waiting).scalar_one())
        c.execute(
            sa.update(db.TRIALS)
            .where(db.TRIALS.c.trial_id == trial_id)
            .values(state=TrialState.RUNNING, datetime_start=db.utc_now())
        )
    else:
        trial_id = _insert_trial(c, study_id, total, TrialState.RUNNING)
    mark_claimed(c, trial_id, worker)
    return trial_id


def unfinished(c: sa.Connection, study_id: int) -> dict[TrialState, int]:
    """How many trials run and how many wait, if any do."""
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
    # By the number of the newest: numbers are given out one after another, and none goes away.
    newest = sa.select(sa.func.max(db.TRIALS.c.trial_id)).where(db.TRIALS.c.study_id == study_id)
    number = c.execute(
        sa.select(db.TRIALS.c.number).where(db.TRIALS.c.trial_id == newest.scalar_subquery())
    ).scalar()
    return 0 if number is None else int(number) + 1


def mark_claimed(c: sa.Connection, trial_id: int, worker: str) -> None:
    """Write a running trial's owner and its first heartbeat."""
    _set_attrs(c, db.SYSTEM_ATTRS, trial_id, {WORKER_KEY: worker})
    _upsert(c, db.HEARTBEATS, {"trial_id": trial_id}, {"heartbeat": _now(c)})


def write(c: sa.Connection, trial_id: int, worker: str, writes: Writes) -> None:
    """Write everything about a trial at once, its end included.

    Raises:
        TrialTakenError: the trial is not this worker's any more; nothing is written.
    """
    ids = {"of_trial": trial_id, "of_worker": json.dumps(worker)}
    if writes.state is None:
        owned = c.execute(_HOLD, ids)
    else:
        owned = c.execute(_END, {**ids, "end": writes.state, "at": db.utc_now()})
    if owned.rowcount != 1:
        ended = c.execute(_STATE_OF_MINE, ids).scalar()
        if writes.state is not None and ended == writes.state:
            return  # this very write, whose answer got lost
        raise TrialTakenError("the trial was ended or taken over by someone else")
    params = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": value,
            "distribution_json": distribution_to_json(distribution),
        }
        for name, (value, distribution) in writes.params.items()
    ]
    _upsert_rows(c, db.PARAMS, ("trial_id", "param_name"), params)
    _set_attrs(c, db.USER_ATTRS, trial_id, writes.user_attrs)
    _set_attrs(c, db.SYSTEM_ATTRS, trial_id, writes.system_attrs)
    stored_report = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    reports = []
    for step, number in writes.reports.items():
        value, kind = stored_report(number)
        report = {"intermediate_value": value, "intermediate_value_type": kind}
        reports.append({"trial_id": trial_id, "step": step, **report})
    _upsert_rows(c, db.INTERMEDIATE, ("trial_id", "step"), reports)
    values: list[dict[str, Any]] = []
    for objective, number in enumerate(writes.values or ()):
        stored, final_kind = models.TrialValueModel.value_to_stored_repr(number)
        final = {"value": stored, "value_type": final_kind}
        values.append({"trial_id": trial_id, "objective": objective, **final})
    _upsert_rows(c, db.VALUES, ("trial_id", "objective"), values)


def beat(c: sa.Connection, trial_id: int, worker: str) -> bool:
    """A sign of life for a trial; false if it is not this worker's any more."""
    mine = sa.exists().where(
        db.TRIALS.c.trial_id == trial_id,
        db.TRIALS.c.state == TrialState.RUNNING,
        _is_claimed_by(worker),
    )
    beaten = c.execute(
        sa.update(db.HEARTBEATS)
        .where(db.HEARTBEATS.c.trial_id == trial_id, mine)
        .values(heartbeat=_now(c))
    )
    return beaten.rowcount == 1


def beats(c: sa.Connection, study_id: int) -> list[Beat]:
    """The signs of life of all running trials that workers of this service hold."""
    now = _aware(c.execute(sa.select(_now(c))).scalar_one())
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
            db.SYSTEM_ATTRS.c.key == WORKER_KEY,
        )
        .order_by(db.TRIALS.c.trial_id)
    )
    return [
        Beat(trial_id, number, json.loads(worker), at, (now - _aware(at)).total_seconds())
        for trial_id, number, worker, at in c.execute(query)
    ]


def hand_back(c: sa.Connection, study_id: int, worker: str, why: str) -> list[int]:
    """Queue again whatever this worker holds; returns the numbers of those trials."""
    query = sa.select(db.TRIALS.c.trial_id, db.TRIALS.c.number).where(
        db.TRIALS.c.study_id == study_id,
        db.TRIALS.c.state == TrialState.RUNNING,
        _is_claimed_by(worker),
    )
    held = c.execute(query).all()
    for trial_id, _ in held:
        _release(c, trial_id, worker, sa.true(), {"worker": worker, "why": why, "lost": False})
    return [number for _, number in held]


def take_from_lost(c: sa.Connection, lost: Beat, retries: int) -> TrialState | None:
    """Queue a lost worker's trial again, or fail it for good after ``retries`` such losses.

    Returns what became of it; None if it showed life, or someone else was quicker.
    """
    attempts = _attempts(c, lost.trial_id)
    attempt = {"worker": lost.worker, "why": "lost worker", "lost": True}
    unchanged = sa.exists().where(
        db.HEARTBEATS.c.trial_id == lost.trial_id, db.HEARTBEATS.c.heartbeat == lost.at
    )
    if sum(a["lost"] for a in attempts) < retries:
        released = _release(c, lost.trial_id, lost.worker, unchanged, attempt)
        return TrialState.WAITING if released else None
    failed = c.execute(
        sa.update(db.TRIALS)
        .where(
            db.TRIALS.c.trial_id == lost.trial_id,
            db.TRIALS.c.state == TrialState.RUNNING,
            _is_claimed_by(lost.worker),
            unchanged,
        )
        # It took until its last sign of life, however late that was noticed.
        .values(state=TrialState.FAIL, datetime_complete=lost.at)
    )
    if failed.rowcount != 1:
        return None
    reason = f"its worker was lost {len(attempts) + 1} times"
    attrs = {"outcome": "lost worker", "reason": reason, ATTEMPTS_KEY: [*attempts, attempt]}
    _set_attrs(c, db.USER_ATTRS, lost.trial_id, attrs)
    return TrialState.FAIL


def _release(
    c: sa.Connection,
    trial_id: int,
    worker: str,
    condition: sa.ColumnElement[bool],
    attempt: dict[str, Any],
) -> bool:
    """Queue a running trial again with its parameters and nothing else."""
    released = c.execute(
        sa.update(db.TRIALS)
        .where(
            db.TRIALS.c.trial_id == trial_id,
            db.TRIALS.c.state == TrialState.RUNNING,
            _is_claimed_by(worker),
            condition,
        )
        .values(state=TrialState.WAITING, datetime_start=None)
    )
    if released.rowcount != 1:
        return False
    attempts = _attempts(c, trial_id)
    for rows in (db.USER_ATTRS, db.INTERMEDIATE, db.VALUES, db.HEARTBEATS):
        c.execute(sa.delete(rows).where(rows.c.trial_id == trial_id))
    attrs = db.SYSTEM_ATTRS
    c.execute(
        sa.delete(attrs).where(attrs.c.trial_id == trial_id, attrs.c.key != _FIXED_PARAMS_KEY)
    )
    _set_attrs(c, db.USER_ATTRS, trial_id, {ATTEMPTS_KEY: [*attempts, attempt]})
    return True


def _attempts(c: sa.Connection, trial_id: int) -> list[dict[str, Any]]:
    query = sa.select(db.USER_ATTRS.c.value_json).where(
        db.USER_ATTRS.c.trial_id == trial_id, db.USER_ATTRS.c.key == ATTEMPTS_KEY
    )
    return list(json.loads(c.execute(query).scalar() or "[]"))


def _lock_study(c: sa.Connection, study_id: int) -> None:
    # A write that changes nothing: PostgreSQL locks the row, SQLite the file, until the end.
    name = db.STUDIES.c.study_name
    c.execute(sa.update(db.STUDIES).where(db.STUDIES.c.study_id == study_id).values({name: name}))


def _is_claimed_by(worker: str | sa.BindParameter[str]) -> sa.ColumnElement[bool]:
    attrs = db.SYSTEM_ATTRS.alias()
    return sa.exists().where(
        attrs.c.trial_id == db.TRIALS.c.trial_id,
        attrs.c.key == WORKER_KEY,
        attrs.c.value_json == (json.dumps(worker) if isinstance(worker, str) else worker),
    )


# Statements of every report, built once: to build one takes longer than to run it.
_MINE = sa.and_(
    db.TRIALS.c.trial_id == sa.bindparam("of_trial", type_=sa.Integer),
    _is_claimed_by(sa.bindparam("of_worker", type_=sa.Text)),
)
_MINE_RUNNING = sa.and_(_MINE, db.TRIALS.c.state == TrialState.RUNNING)
_STATE_OF_MINE = sa.select(db.TRIALS.c.state).where(_MINE)
_HOLD = sa.update(db.TRIALS).where(_MINE_RUNNING).values(state=TrialState.RUNNING)
_END = (
    sa.update(db.TRIALS)
    .where(_MINE_RUNNING)
    .values(state=sa.bindparam("end"), datetime_complete=sa.bindparam("at"))
)


def _insert_trial(c: sa.Connection, study_id: int, number: int, state: TrialState) -> int:
    start = db.utc_now() if state == TrialState.RUNNING else None
    row = {"study_id": study_id, "number": number, "state": state, "datetime_start": start}
    return _key_of(c.execute(sa.insert(db.TRIALS).values(row)))


def _key_of(result: sa.CursorResult[Any]) -> int:
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


def _set_attrs(c: sa.Connection, of: sa.Table, trial_id: int, attrs: Mapping[str, Any]) -> None:
    rows = [{"trial_id": trial_id, "key": k, "value_json": json.dumps(v)} for k, v in attrs.items()]
    _upsert_rows(c, of, ("trial_id", "key"), rows)


def _json(value: Any) -> dict[str, Any]:
    return {"value_json": json.dumps(value)}


def _upsert(c: sa.Connection, of: sa.Table, key: dict[str, Any], value: dict[str, Any]) -> None:
    _upsert_rows(c, of, tuple(key), [{**key, **value}])


def _upsert_rows(
    c: sa.Connection, of: sa.Table, key: tuple[str, ...], rows: Sequence[dict[str, Any]]
) -> None:
    """Insert rows of equal columns; those whose key is there are replaced."""
    if rows and any(isinstance(value, sa.ClauseElement) for value in rows[0].values()):
        c.execute(_upsert_statement(c.dialect.name, of, key, tuple(rows[0])).values(rows[0]))
    elif rows:
        statement = _upsert_statement(c.dialect.name, of, key, tuple(rows[0]))
        c.execute(statement, list(rows))


@lru_cache(maxsize=64)
def _upsert_statement(
    dialect: str, of: sa.Table, key: tuple[str, ...], columns: tuple[str, ...]
) -> Any:
    # Both dialects know "on conflict", and SQLAlchemy has it for each on its own.
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(of)
    changed = {name: insert.excluded[name] for name in columns if name not in key}
    return insert.on_conflict_do_update(index_elements=key, set_=changed)


def _now(c: sa.Connection) -> Any:
    """The database's clock, in the form in which SQLAlchemy stores and compares moments."""
    if c.dialect.name == "postgresql":
        return sa.func.now()
    return sa.func.strftime("%Y-%m-%d %H:%M:%f000", "now", type_=sa.DateTime())


def _aware(moment: datetime) -> datetime:
    # Connections are set to UTC; SQLite knows no other.
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
