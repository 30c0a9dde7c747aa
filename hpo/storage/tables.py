"""Read trials from Optuna's tables in few statements.

Optuna's own storage reads rows through an object mapper; with many workers that is most of the
cost of a trial. The tables are Optuna's, so its dashboard and tools work on them as usual.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from .dialects import dialect_of
from .optuna_internals import table

STUDIES = table("studies")
DIRECTIONS = table("study_directions")
STUDY_USER_ATTRS = table("study_user_attributes")
STUDY_SYSTEM_ATTRS = table("study_system_attributes")
TRIALS = table("trials")
PARAMS = table("trial_params")
USER_ATTRS = table("trial_user_attributes")
SYSTEM_ATTRS = table("trial_system_attributes")
VALUES = table("trial_values")
INTERMEDIATE = table("trial_intermediate_values")
HEARTBEATS = table("trial_heartbeats")

# The system attribute that names a trial's worker. It is internal: readers of a trial do not see
# it.
WORKER_KEY = "hpo:worker"
# The system attribute that identifies a study; another one may have the same id and name.
IDENTITY_KEY = "hpo:identity"
STATE_INDEX = "ix_hpo_trials_study_id_state"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_READ_AT_ONCE = 2000  # ids in one statement; SQLite takes at most 32,766 variables
_INDEX_WAIT_MS = 2000


def add_state_index(engine: sa.Engine) -> None:
    """Add an index to find queued and running trials among all the finished ones.

    Optuna's tables have none, so a claim would read every finished trial. If there is no right to
    add it, or another process holds the table, everything works without it.
    """
    try:
        known = sa.inspect(engine).get_indexes(TRIALS.name)
        if any(index["name"] == STATE_INDEX for index in known):
            return
        with engine.begin() as c:
            dialect_of(c).limit_lock_wait(c, _INDEX_WAIT_MS)
            c.exec_driver_sql(
                f"CREATE INDEX IF NOT EXISTS {STATE_INDEX} ON trials (study_id, state, trial_id)"
            )
    except sa.exc.DBAPIError:
        return


def study_of(c: sa.Connection, trial_id: int) -> int:
    """The id of a trial's study.

    Raises:
        KeyError: there is no such trial.
    """
    query = sa.select(TRIALS.c.study_id).where(TRIALS.c.trial_id == trial_id)
    study_id = c.execute(query).scalar()
    if study_id is None:
        raise KeyError(f"no trial has the id {trial_id}")
    return int(study_id)


def states_of(
    c: sa.Connection, study_id: int, among: Collection[int] = (), after: int = -1
) -> list[tuple[int, TrialState]]:
    """Ids and states of the study's trials whose id is in ``among`` or above ``after``.

    Raises:
        KeyError: there is no such study.
    """
    # Sorted, so that equal sets of ids give the same statement, which is compiled once.
    known = TRIALS.c.trial_id.in_(sorted(among))
    query = sa.select(TRIALS.c.trial_id, TRIALS.c.state).where(
        TRIALS.c.study_id == study_id, sa.or_(TRIALS.c.trial_id > after, known)
    )
    states = [(trial_id, state) for trial_id, state in c.execute(query)]
    if not states and after < 0:
        study = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)
        if c.execute(study).first() is None:
            raise KeyError(f"no study has the id {study_id}")
    return states


def distribution_of(c: sa.Connection, study_id: int, name: str) -> BaseDistribution | None:
    """The distribution of a parameter in the study's trials; None if no trial has it."""
    query = (
        sa.select(PARAMS.c.distribution_json)
        .join(TRIALS)
        .where(TRIALS.c.study_id == study_id, PARAMS.c.param_name == name)
        .limit(1)
    )
    text = c.execute(query).scalar()
    return None if text is None else _distribution(text)


def system_attrs_of(c: sa.Connection, trial_id: int) -> dict[str, Any]:
    """A trial's system attributes alone, because samplers and pruners often ask for them.

    Raises:
        KeyError: there is no such trial.
    """
    query = (
        sa.select(SYSTEM_ATTRS.c.key, SYSTEM_ATTRS.c.value_json)
        .select_from(TRIALS.outerjoin(SYSTEM_ATTRS))
        .where(TRIALS.c.trial_id == trial_id)
    )
    rows = c.execute(query).all()
    if not rows:
        raise KeyError(f"no trial has the id {trial_id}")
    return {key: json.loads(text) for key, text in rows if key not in (None, WORKER_KEY)}


def trials_of(c: sa.Connection, ids: Collection[int]) -> list[FrozenTrial]:
    """Read the trials with these ids, in the order of the ids."""
    ordered = sorted(ids)
    parts = range(0, len(ordered), _READ_AT_ONCE)
    return [trial for i in parts for trial in _some_trials(c, ordered[i : i + _READ_AT_ONCE])]


def _some_trials(c: sa.Connection, ids: list[int]) -> list[FrozenTrial]:
    columns = ("trial_id", "number", "state", "datetime_start", "datetime_complete")
    heads = sa.select(*(TRIALS.c[name] for name in columns)).where(TRIALS.c.trial_id.in_(ids))

    def children(of: sa.Table, order: str, *names: str) -> dict[int, list[Any]]:
        query = sa.select(of.c.trial_id, *(of.c[n] for n in names)).where(of.c.trial_id.in_(ids))
        rows = defaultdict(list)
        for row in c.execute(query.order_by(of.c[order])):
            rows[row[0]].append(row[1:])
        return rows

    found = c.execute(heads.order_by(TRIALS.c.trial_id)).all()
    if not found:
        return []
    params = children(PARAMS, "param_id", "param_name", "param_value", "distribution_json")
    values = children(VALUES, "objective", "value", "value_type")
    steps = children(INTERMEDIATE, "step", "step", "intermediate_value", "intermediate_value_type")
    user_attrs = children(USER_ATTRS, "trial_user_attribute_id", "key", "value_json")
    system_attrs = children(SYSTEM_ATTRS, "trial_system_attribute_id", "key", "value_json")
    return [
        FrozenTrial(
            number=head.number,
            state=head.state,
            value=None,
            values=[_number(v, kind.name) for v, kind in values[head.trial_id]] or None,
            datetime_start=_local(head.datetime_start),
            datetime_complete=_local(head.datetime_complete),
            params={n: _distribution(d).to_external_repr(v) for n, v, d in params[head.trial_id]},
            distributions={n: _distribution(d) for n, _, d in params[head.trial_id]},
            user_attrs={k: json.loads(v) for k, v in user_attrs[head.trial_id]},
            system_attrs={
                k: json.loads(v) for k, v in system_attrs[head.trial_id] if k != WORKER_KEY
            },
            intermediate_values={s: _number(v, k.name) for s, v, k in steps[head.trial_id]},
            trial_id=head.trial_id,
        )
        for head in found
    ]


def _number(value: float | None, kind: str) -> float:
    """A stored number; infinities and NaN are stored as a kind."""
    special = {"INF_POS": float("inf"), "INF_NEG": float("-inf"), "NAN": float("nan")}
    return special[kind] if kind in special else float(value)  # type: ignore[arg-type]


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    # Cached, because every trial has the same few texts.
    return json_to_distribution(text)


def _local(moment: datetime | None) -> datetime | None:
    """Naive local time, which Optuna shows, from naive UTC, which it stores."""
    return moment and moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def utc_now() -> datetime:
    """The current time as naive UTC, as the tables store it."""
    return datetime.now(UTC).replace(tzinfo=None)
