"""Optuna's tables, read and written in few statements, each operation tried again when it fails.

Optuna's own storage reads rows through an object mapper and writes each parameter, attribute and
report in a transaction of its own; with many workers that is most of what a trial costs.  The
tables are Optuna's, of the release that this project pins, so its dashboard and tools work on
them as ever.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from .patience import Patience

T = TypeVar("T")


def table(model: type) -> sa.Table:
    return model.__table__  # type: ignore[attr-defined, no-any-return]


STUDIES = table(models.StudyModel)
DIRECTIONS = table(models.StudyDirectionModel)
STUDY_USER_ATTRS = table(models.StudyUserAttributeModel)
STUDY_SYSTEM_ATTRS = table(models.StudySystemAttributeModel)
TRIALS = table(models.TrialModel)
PARAMS = table(models.TrialParamModel)
USER_ATTRS = table(models.TrialUserAttributeModel)
SYSTEM_ATTRS = table(models.TrialSystemAttributeModel)
VALUES = table(models.TrialValueModel)
INTERMEDIATE = table(models.TrialIntermediateValueModel)
HEARTBEATS = table(models.TrialHeartbeatModel)

_PATIENT = (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_id_from_study_id_trial_number",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "_set_trial_param",
    "_get_best_trial_id",
)


class Database(RDBStorage):
    """`optuna.storages.RDBStorage`, patient and quick."""

    def __init__(self, url: str, patience: Patience, **options: Any) -> None:
        self.patience = patience
        super().__init__(url, **options)
        for name in _PATIENT:
            setattr(self, name, partial(self._patiently, getattr(super(), name)))

    def _patiently(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return self.patience.call(lambda: method(*args, **kwargs))

    def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in one transaction, again and again until it is committed.

        When a commit's answer is lost, ``work`` runs once more on top of its own effects.
        """

        def once() -> T:
            with self.engine.begin() as connection:
                return work(connection)

        return self.patience.call(once)

    @contextmanager
    def at_once(self) -> Iterator[sa.Connection]:
        """One transaction that is not tried again: for what comes round anyway."""
        with self.engine.begin() as connection:
            yield connection

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trials = self.transact(lambda c: read_trials(c, TRIALS.c.trial_id == trial_id))
        if not trials:
            raise KeyError(f"no trial has the id {trial_id}")
        return trials[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        which = sa.and_(
            TRIALS.c.study_id == study_id,
            sa.or_(
                TRIALS.c.trial_id > trial_id_greater_than,
                TRIALS.c.trial_id.in_(included_trial_ids),
            ),
        )
        trials = self.transact(lambda c: read_trials(c, which))
        return trials if states is None else [t for t in trials if t.state in states]


def read_trials(connection: sa.Connection, which: sa.ColumnElement[bool]) -> list[FrozenTrial]:
    """Whole trials that ``which``, a condition on `TRIALS`, selects, in the order of their ids."""
    columns = (
        *(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state),
        *(TRIALS.c.datetime_start, TRIALS.c.datetime_complete),
    )
    heads = connection.execute(sa.select(*columns).where(which).order_by(TRIALS.c.trial_id)).all()
    if not heads:
        return []
    ids = [head.trial_id for head in heads]
    # A short list of ids is quicker than the condition; a long one has too many variables.
    chosen = ids if len(ids) <= 500 else sa.select(TRIALS.c.trial_id).where(which)

    def children(of: sa.Table, order: str, *names: str) -> dict[int, list[Any]]:
        query = sa.select(of.c.trial_id, *(of.c[n] for n in names)).where(of.c.trial_id.in_(chosen))
        rows = defaultdict(list)
        for row in connection.execute(query.order_by(of.c[order])):
            rows[row[0]].append(row[1:])
        return rows

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
            values=[number_of(v, kind.name) for v, kind in values[head.trial_id]] or None,
            datetime_start=_local(head.datetime_start),
            datetime_complete=_local(head.datetime_complete),
            params={n: _distribution(d).to_external_repr(v) for n, v, d in params[head.trial_id]},
            distributions={n: _distribution(d) for n, _, d in params[head.trial_id]},
            user_attrs={k: json.loads(v) for k, v in user_attrs[head.trial_id]},
            system_attrs={k: json.loads(v) for k, v in system_attrs[head.trial_id]},
            intermediate_values={s: number_of(v, k.name) for s, v, k in steps[head.trial_id]},
            trial_id=head.trial_id,
        )
        for head in heads
    ]


def number_of(value: float | None, kind: str) -> float:
    """A stored number: those that SQL has no word for are stored as a kind."""
    special = {"INF_POS": float("inf"), "INF_NEG": float("-inf"), "NAN": float("nan")}
    return special[kind] if kind in special else float(value)  # type: ignore[arg-type]


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    # The same few texts come with every trial.
    return json_to_distribution(text)


def _local(moment: datetime | None) -> datetime | None:
    """Optuna stores naive UTC and shows naive local time."""
    return moment and moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def utc_now() -> datetime:
    """Naive UTC, as the tables hold it."""
    return datetime.now(UTC).replace(tzinfo=None)
