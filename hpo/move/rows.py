"""Copy a study's rows and files to another database, and compare the two.

Rows are copied as they are stored, without Optuna's objects in between, so that nothing is lost:
infinite and NaN values, the exact text of attributes, rows of other programs.  Rows get new primary
keys in the target, in the same order.  Attributes that contain a trial's id get the new one.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from ..artifacts.store import Store
from ..artifacts.uploads import ARTIFACT_PREFIX
from ..storage import tables as db
from ..storage.calls import CallRow, calls_of_study, count_of_study, has_table, write_calls

Advance = Callable[[int], object]  # called with the number of trials just finished

_STUDY_TABLES = (db.DIRECTIONS, db.STUDY_USER_ATTRS, db.STUDY_SYSTEM_ATTRS)
_TRIAL_TABLES = (
    *(db.PARAMS, db.VALUES, db.INTERMEDIATE),
    *(db.USER_ATTRS, db.SYSTEM_ATTRS, db.HEARTBEATS),
)
_BATCH = 500  # trials in one batch

# Study attributes of optuna-dashboard with a trial's id in their name: notes, artifacts of its
# older releases, trials skipped in a preferential study.
_ID_IN_KEY = re.compile(
    r"^(dashboard:|dashboard:artifacts:|preference:skip_trial:)(\d+)(:note_ver|:note_str:\d+|:.+|)$"
)
# Study attributes of Optuna's genetic samplers with trials' ids in their value.
_IDS_IN_VALUE = re.compile(r":parent:\d+$")


@dataclass(frozen=True)
class _Part:
    """A batch of successive trials."""

    ids: list[int]
    trials: list[tuple[Any, ...]]  # rows of trials, with the columns of `_columns`
    # Rows by table: the index of the row's trial in ``ids``, then the columns of `_columns`.
    rows: dict[str, list[tuple[Any, ...]]]

    def in_order(self) -> tuple[Any, ...]:
        """A form to compare: equal for equal trials, whatever their ids and the order of rows."""
        return self.trials, {name: sorted(rows, key=repr) for name, rows in self.rows.items()}


class StudyRows:
    """A study's rows, read in one transaction."""

    def __init__(self, connection: sa.Connection, study_id: int) -> None:
        self.connection = connection
        self.study_id = study_id
        mine = sa.select(db.TRIALS.c.trial_id).where(db.TRIALS.c.study_id == study_id)
        # In the order of ids, because queued trials are run in that order.
        self.ids = list(connection.execute(mine.order_by(db.TRIALS.c.trial_id)).scalars())
        self._has_calls = has_table(connection)

    def parts(self) -> Iterator[_Part]:
        for first in range(0, len(self.ids), _BATCH):
            yield self._part(self.ids[first : first + _BATCH])

    def _part(self, ids: list[int]) -> _Part:
        place = {trial_id: place for place, trial_id in enumerate(ids)}
        heads = sa.select(*_columns(db.TRIALS)).where(db.TRIALS.c.trial_id.in_(ids))
        rows = {}
        for table in _TRIAL_TABLES:
            query = sa.select(table.c.trial_id, *_columns(table)).where(table.c.trial_id.in_(ids))
            found = self.connection.execute(query.order_by(*table.primary_key))
            rows[table.name] = [(place[trial_id], *facts) for trial_id, *facts in found]
        found = self.connection.execute(heads.order_by(db.TRIALS.c.trial_id))
        return _Part(ids, [tuple(row) for row in found], rows)

    def own(self, table: sa.Table, names: Mapping[int, object]) -> list[dict[str, Any]]:
        """The study's rows in a table of `_STUDY_TABLES`; ``names`` replace trials' ids."""
        query = sa.select(*_columns(table)).where(table.c.study_id == self.study_id)
        rows = self.connection.execute(query.order_by(*table.primary_key)).mappings()
        if table is not db.STUDY_SYSTEM_ATTRS:
            return [dict(row) for row in rows]
        return [_renamed(row["key"], row["value_json"], names) for row in rows]

    def calls(self) -> Iterator[CallRow]:
        """The study's stored calls, in the order of their keys."""
        return calls_of_study(self.connection, self.study_id) if self._has_calls else iter(())

    def count_calls(self) -> int:
        """Number of the study's stored calls."""
        return count_of_study(self.connection, self.study_id)

    def files(self) -> list[str]:
        """Ids of the files of the study and of its trials."""
        keys: set[str] = set()
        for table, owner in ((db.STUDY_SYSTEM_ATTRS, db.STUDIES), (db.SYSTEM_ATTRS, db.TRIALS)):
            query = (
                sa.select(table.c.key)
                .join(owner)
                .where(owner.c.study_id == self.study_id, table.c.key.startswith(ARTIFACT_PREFIX))
            )
            keys.update(self.connection.execute(query).scalars())
        return sorted(key.removeprefix(ARTIFACT_PREFIX) for key in keys)


def add_calls(of: StudyRows, copy: StudyRows) -> int:
    """Insert the stored calls that the study's copy lacks; returns how many.

    A call's key names everything it depends on, so calls that the copy has are left as they are.
    """
    there = {call_key(row) for row in copy.calls()}
    missing = (row for row in of.calls() if call_key(row) not in there)
    added = 0
    while batch := list(itertools.islice(missing, _BATCH)):
        write_calls(copy.connection, [replace(row, study_id=copy.study_id) for row in batch])
        added += len(batch)
    return added


def call_key(row: CallRow) -> tuple[str, ...]:
    """The key of a call among a study's calls."""
    return row.recipe, row.instance, row.basis


def insert_study(name: str, of: StudyRows, into: sa.Connection, advance: Advance) -> StudyRows:
    """Insert a study's rows into another database, in the transaction of ``into``."""
    study_id = _inserted(into, db.STUDIES, [{"study_name": name}])[0]
    ids: dict[int, object] = {}
    for part in of.parts():
        heads = [{"study_id": study_id, **_named(db.TRIALS, row)} for row in part.trials]
        new = _inserted(into, db.TRIALS, heads)
        ids.update(zip(part.ids, new, strict=True))
        for table in _TRIAL_TABLES:
            rows = [
                {"trial_id": new[place], **_named(table, facts)}
                for place, *facts in part.rows[table.name]
            ]
            if rows:
                into.execute(sa.insert(table), rows)
        advance(len(new))
    for table in _STUDY_TABLES:
        rows = [{"study_id": study_id, **row} for row in of.own(table, ids)]
        if rows:
            into.execute(sa.insert(table), rows)
    return StudyRows(into, study_id)


def difference(one: StudyRows, other: StudyRows, advance: Advance) -> str | None:
    """The first difference between two studies, in words; None if they are equal.

    Names, ids and the order of rows are not compared.
    """
    if len(one.ids) != len(other.ids):
        return f"{len(one.ids)} trials and {len(other.ids)}"
    for table in _STUDY_TABLES:
        ours, theirs = (
            sorted((tuple(row.values()) for row in study.own(table, places)), key=repr)
            for study in (one, other)
            for places in [{trial_id: f"#{i}" for i, trial_id in enumerate(study.ids)}]
        )
        if ours != theirs:
            return f"its {_words(table.name)}"
    for part, its_copy in zip(one.parts(), other.parts(), strict=True):
        if part.in_order() != its_copy.in_order():
            return _differing(part, its_copy)
        advance(len(part.ids))
    return None


def differing_call(one: StudyRows, other: StudyRows) -> str | None:
    """The first difference between two studies' stored calls, in words; None if they are equal."""
    for ours, theirs in itertools.zip_longest(one.calls(), other.calls()):
        if ours is None or theirs is None or replace(theirs, study_id=ours.study_id) != ours:
            row = ours or theirs
            assert row is not None
            return f"its call of recipe {row.recipe} on {row.instance}"
    return None


def _differing(ours: _Part, theirs: _Part) -> str:
    number = _columns(db.TRIALS).index(db.TRIALS.c.number)
    for i, (one, other) in enumerate(zip(ours.trials, theirs.trials, strict=True)):
        for table in _TRIAL_TABLES:
            here, there = (
                sorted((row for row in part.rows[table.name] if row[0] == i), key=repr)
                for part in (ours, theirs)
            )
            if here != there:
                return f"trial {one[number]}: its {_words(table.name)}"
        if one != other:
            return f"trial {one[number]}: its number, state or times"
    raise AssertionError("parts that differ have a trial that does")


def _words(table: str) -> str:
    return table.removeprefix("trial_").removeprefix("study_").replace("_", " ")


def _columns(table: sa.Table) -> tuple[sa.Column[Any], ...]:
    """A table's columns without primary and foreign keys."""
    return tuple(c for c in table.columns if not c.primary_key and not c.foreign_keys)


def _named(table: sa.Table, facts: Sequence[Any]) -> dict[str, Any]:
    return dict(zip((c.name for c in _columns(table)), facts, strict=True))


def _inserted(c: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> list[int]:
    """Insert rows; returns their keys, which increase in the rows' order."""
    (key,) = table.primary_key
    returning = sa.insert(table).returning(key, sort_by_parameter_order=True)
    keys = list(c.execute(returning, rows).scalars())
    if any(a >= b for a, b in itertools.pairwise(keys)):
        raise RuntimeError(f"the keys of {table.name} do not increase in the order of the rows")
    return keys


def _renamed(key: str, value_json: str, names: Mapping[int, object]) -> dict[str, Any]:
    """A study's system attribute; ``names`` replace trials' ids."""
    found = _ID_IN_KEY.match(key)
    if found is not None and int(found[2]) in names:
        key = f"{found[1]}{names[int(found[2])]}{found[3]}"
    elif _IDS_IN_VALUE.search(key):
        ids = json.loads(value_json)
        value_json = json.dumps([names.get(trial_id, trial_id) for trial_id in ids])
    return {"key": key, "value_json": value_json}


def copy_file(file_id: str, source: Store, target: Store) -> bool:
    """Copy a file to another store, unless it is there, and read it back.

    Returns:
        Whether the source has the file.

    Raises:
        OSError: a store does not work, or returns something else than was written.
        ValueError: ``file_id`` is not the id of a file.
    """
    content = _content(file_id, source)
    if content is None:
        return False
    if _content(file_id, target) != content:
        target.write(file_id, io.BytesIO(content))
        if _content(file_id, target) != content:
            raise OSError("what was written is not what is read")
    return True


def _content(file_id: str, store: Store) -> bytes | None:
    from optuna.artifacts.exceptions import ArtifactNotFound  # late: it imports all stores

    try:
        with store.open_reader(file_id) as file:
            return file.read()
    except ArtifactNotFound:
        return None
