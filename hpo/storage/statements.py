"""SQL statements that several transactions use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState

from . import tables as db
from .dialects import Dialect, dialect_of


def lock_study(c: sa.Connection, study_id: int, token: str | None = None) -> None:
    """Lock the study: other transactions that lock it wait until this one ends.

    Args:
        token: token of the study, from `transactions.identify`; None: it is not checked.

    Raises:
        KeyError: there is no such study.
    """
    # A write that changes nothing: PostgreSQL locks the row, SQLite the file.
    name = db.STUDIES.c.study_name
    update = sa.update(db.STUDIES).where(db.STUDIES.c.study_id == study_id).values({name: name})
    if token is not None:
        attrs = db.STUDY_SYSTEM_ATTRS
        update = update.where(
            sa.exists().where(
                attrs.c.study_id == study_id,
                attrs.c.key == db.IDENTITY_KEY,
                attrs.c.value_json == json.dumps(token),
            )
        )
    locked = c.execute(update)
    if locked.rowcount != 1:
        raise KeyError(f"no study has the id {study_id}")


def insert(c: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> int:
    """Insert a row; returns its key."""
    key = c.execute(sa.insert(table).values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])


def upsert(
    c: sa.Connection, table: sa.Table, key: tuple[str, ...], rows: Sequence[dict[str, Any]]
) -> None:
    """Insert rows with equal columns; rows with the same key are replaced."""
    if rows:
        c.execute(_upsert_statement(dialect_of(c), table, key, tuple(rows[0])), list(rows))


@lru_cache(maxsize=64)
def _upsert_statement(
    dialect: Dialect, table: sa.Table, key: tuple[str, ...], columns: tuple[str, ...]
) -> Any:
    statement = dialect.insert(table)
    changed = {name: statement.excluded[name] for name in columns if name not in key}
    return statement.on_conflict_do_update(index_elements=key, set_=changed)


def set_attrs(
    c: sa.Connection, table: sa.Table, owner: dict[str, int], attrs: Mapping[str, Any]
) -> None:
    """Set attributes of a study or trial; ``owner`` is its key, such as ``{"trial_id": 7}``."""
    rows = [{**owner, "key": key, "value_json": json.dumps(v)} for key, v in attrs.items()]
    upsert(c, table, (*owner, "key"), rows)


def set_worker(c: sa.Connection, trial_id: int, worker: str) -> None:
    """Write a running trial's worker and its first heartbeat."""
    trial = {"trial_id": trial_id}
    set_attrs(c, db.SYSTEM_ATTRS, trial, {db.WORKER_KEY: worker})
    beat = _upsert_statement(dialect_of(c), db.HEARTBEATS, ("trial_id",), ("heartbeat",))
    c.execute(beat.values(trial_id=trial_id, heartbeat=dialect_of(c).now()))


def is_owned_by(worker: str | sa.BindParameter[str]) -> sa.ColumnElement[bool]:
    """SQL condition: the trial in the row belongs to the worker."""
    attrs = db.SYSTEM_ATTRS.alias()
    return sa.exists().where(
        attrs.c.trial_id == db.TRIALS.c.trial_id,
        attrs.c.key == db.WORKER_KEY,
        attrs.c.value_json == (json.dumps(worker) if isinstance(worker, str) else worker),
    )


def is_held_by(worker: str) -> sa.ColumnElement[bool]:
    """SQL condition: the trial in the row is running and belongs to the worker."""
    return sa.and_(db.TRIALS.c.state == TrialState.RUNNING, is_owned_by(worker))
