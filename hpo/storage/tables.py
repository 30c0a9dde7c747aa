"""Optuna's tables, read and written in few statements, each operation tried again when it fails.

Optuna's own storage reads rows through an object mapper and writes each parameter, attribute and
report in a transaction of its own; with many workers that is most of what a trial costs.  The
tables are Optuna's, of the release that this project pins, so its dashboard and tools work on
them as ever.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, ClassVar, TypeVar

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from .retry import Patience

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

STATE_INDEX = "ix_hpo_trials_study_id_state"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_READ_AT_ONCE = 2000  # ids in a statement; SQLite takes 32,766 variables

# Of those that `StudyStorage` leaves to Optuna.
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
)


class Database(RDBStorage):
    """`optuna.storages.RDBStorage`, patient and quick."""

    _usable: ClassVar[set[str]] = set()  # releases of tables that were checked in this process

    def __init__(self, url: str, patience: Patience, **options: Any) -> None:
        self.patience = patience
        super().__init__(url, skip_compatibility_check=True, **options)
        release = self._version_manager.get_current_version()
        if release not in self._usable:  # the check reads all of Optuna's migrations
            self._version_manager.check_table_schema_compatibility()
            self._usable.add(release)
        self._reading = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        for name in _PATIENT:
            setattr(self, name, partial(self._patiently, getattr(super(), name)))

    def _patiently(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return self.patience.call(lambda: method(*args, **kwargs))

    def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in one transaction, again and again until it is committed.

        When a commit's answer is lost, ``work`` runs once more on top of its own effects.
        """

        def once() -> T:
            with self.at_once() as connection:
                return work(connection)

        return self.patience.call(once)

    def look(self, read: Callable[[sa.Connection], T]) -> T:
        """Run ``read``, which writes nothing, again and again until it succeeds.

        Each of its statements is its own transaction, which saves the journeys of beginning and
        ending one.
        """

        def once() -> T:
            with self._reading.connect() as connection:
                return read(connection)

        return self.patience.call(once)

    @contextmanager
    def at_once(self) -> Iterator[sa.Connection]:
        """One transaction that is not tried again: for what comes round anyway."""
        with self.engine.begin() as connection:
            yield connection

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trials = self.whole_trials([trial_id])
        if not trials:
            raise KeyError(f"no trial has the id {trial_id}")
        return trials[0]

    def system_attrs(self, trial_id: int) -> dict[str, Any]:
        """A trial's system attributes alone: samplers and pruners ask for them often."""
        query = sa.select(SYSTEM_ATTRS.c.key, SYSTEM_ATTRS.c.value_json).where(
            SYSTEM_ATTRS.c.trial_id == trial_id
        )
        return self.look(lambda c: {k: json.loads(v) for k, v in c.execute(query)})

    def study_of(self, trial_id: int) -> int:
        """The id of a trial's study.

        Raises:
            KeyError: there is no such trial.
        """
        query = sa.select(TRIALS.c.study_id).where(TRIALS.c.trial_id == trial_id)
        study_id = self.look(lambda c: c.execute(query).scalar())
        if study_id is None:
            raise KeyError(f"no trial has the id {trial_id}")
        return int(study_id)

    def states_of(
        self, study_id: int, among: Collection[int], after: int
    ) -> list[tuple[int, TrialState]]:
        """Ids and states of the study's trials ``among`` some ids, and of all above ``after``."""
        # Sorted: the same ids make the same statement, which is compiled once.
        known = TRIALS.c.trial_id.in_(sorted(among))
        query = sa.select(TRIALS.c.trial_id, TRIALS.c.state).where(
            TRIALS.c.study_id == study_id, sa.or_(TRIALS.c.trial_id > after, known)
        )
        return self.look(lambda c: [(i, state) for i, state in c.execute(query)])

    def whole_trials(self, ids: Collection[int]) -> list[FrozenTrial]:
        """The trials with these ids, in their order."""
        trials: list[FrozenTrial] = []
        ordered = sorted(ids)
        for start in range(0, len(ordered), _READ_AT_ONCE):
            some = TRIALS.c.trial_id.in_(ordered[start : start + _READ_AT_ONCE])
            trials += self.look(lambda c, some=some: read_trials(c, some))  # type: ignore[misc]
        return trials


def hasten(engine: sa.Engine) -> None:
    """Add the index by which queued and running trials are found among all the finished ones.

    Optuna's tables have none, and a claim would read every finished trial.
    Without the right to add one, or while another process has the table, all works as well.
    """
    try:
        known = sa.inspect(engine).get_indexes(TRIALS.name)
        if any(index["name"] == STATE_INDEX for index in known):
            return
        with engine.begin() as c:
            if c.dialect.name == "postgresql":
                c.exec_driver_sql("SET LOCAL lock_timeout = 2000")  # ms
            c.exec_driver_sql(
                f"CREATE INDEX IF NOT EXISTS {STATE_INDEX} ON trials (study_id, state, trial_id)"
            )
    except sa.exc.DBAPIError:
        return


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

    def children(of: sa.Table, order: str, *names: str) -> dict[int, list[Any]]:
        query = sa.select(of.c.trial_id, *(of.c[n] for n in names)).where(of.c.trial_id.in_(ids))
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
