"""The table of calls: each call's result, under a key that names everything it depends on.

Optuna has no place for calls outside of trials, and a trial that is queued again loses its
attributes. So this service has a table of its own, ``hpo_calls``, beside Optuna's. Each function is
the body of one transaction and may be repeated after it has succeeded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import sqlalchemy as sa

from . import tables as db
from .dialects import dialect_of
from .errors import driver_message, is_transient
from .statements import upsert

# No foreign key: Optuna deletes studies and knows nothing of these rows.
CALLS = sa.Table(
    "hpo_calls",
    sa.MetaData(),
    sa.Column("recipe", sa.Text, primary_key=True),
    sa.Column("instance", sa.Text, primary_key=True),
    sa.Column("basis", sa.Text, primary_key=True),
    sa.Column("study_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("trial", sa.Integer),
    sa.Column("value_json", sa.Text, nullable=False),
    sa.Column("checksum", sa.Text, nullable=False),
)
_KEY = ("recipe", "instance", "basis", "study_id")
_READ_AT_ONCE = 100  # recipes in one query; a call has some thousand characters


@dataclass(frozen=True)
class CallRow:
    """A row of the table of calls."""

    recipe: str  # digest of the complete values
    instance: str  # label of the instance
    basis: str  # digest of what else the call depends on
    study_id: int  # study that the row belongs to; other studies may read it
    trial: int | None  # number of the trial that made it; None: a confirmation did
    value_json: str
    checksum: str  # of all fields above but study and trial


def make_table(engine: sa.Engine) -> str | None:
    """Create the table if it is not there.

    Returns:
        None if calls can be read and written now; else the reason why not, such as missing rights.

    Raises:
        sqlalchemy.exc.DBAPIError: the database is away for a while.
    """
    try:
        if not has_table(engine):
            with engine.begin() as c, dialect_of(c).table_lock(c):
                c.execute(sa.schema.CreateTable(CALLS, if_not_exists=True))
        with engine.begin() as c:
            # These statements change nothing, and fail if rights or columns are missing.
            c.execute(sa.select(CALLS).limit(0))
            nothing = sa.select(*CALLS.c).where(sa.false())
            c.execute(sa.insert(CALLS).from_select([column.name for column in CALLS.c], nothing))
            c.execute(sa.update(CALLS).where(sa.false()).values(checksum=""))
    except sa.exc.DBAPIError as error:
        if is_transient(error):
            raise
        return driver_message(error)
    return None


def has_table(place: sa.Engine | sa.Connection) -> bool:
    """Whether the database has our table; another program's table of that name does not count."""
    inspector = sa.inspect(place)
    if not inspector.has_table(CALLS.name):
        return False
    return {c.name for c in CALLS.c} <= {c["name"] for c in inspector.get_columns(CALLS.name)}


def calls_of(c: sa.Connection, recipe: str) -> list[CallRow]:
    """All calls of a recipe, of any study."""
    return [CallRow(*row) for row in c.execute(sa.select(CALLS).where(CALLS.c.recipe == recipe))]


def calls_of_study(c: sa.Connection, study_id: int) -> Iterator[CallRow]:
    """A study's calls, in the order of their keys; the table has to exist."""
    mine = CALLS.c.study_id == study_id
    # Ordered by bytes, because both kinds of databases can do that.
    order = [sa.collate(CALLS.c[name], dialect_of(c).bytewise) for name in _KEY[:3]]
    recipes = list(c.execute(sa.select(CALLS.c.recipe).where(mine).distinct()).scalars())
    recipes.sort(key=str.encode)
    for first in range(0, len(recipes), _READ_AT_ONCE):
        some = CALLS.c.recipe.in_(recipes[first : first + _READ_AT_ONCE])
        for row in c.execute(sa.select(CALLS).where(mine, some).order_by(*order)):
            yield CallRow(*row)


def write_calls(c: sa.Connection, rows: Sequence[CallRow]) -> None:
    """Write calls; each replaces the study's row with the same key."""
    names = [column.name for column in CALLS.c]
    upsert(c, CALLS, _KEY, [dict(zip(names, astuple(row), strict=True)) for row in rows])


def count_of_study(c: sa.Connection, study_id: int) -> int:
    """How many calls a study has."""
    if not has_table(c):
        return 0
    return _count(c, CALLS.c.study_id == study_id)


def count_of_trial(c: sa.Connection, trial_id: int) -> int:
    """How many stored calls a trial's workers have made; the table has to exist."""
    columns = (db.TRIALS.c.study_id, db.TRIALS.c.number)
    trial = c.execute(sa.select(*columns).where(db.TRIALS.c.trial_id == trial_id)).one()
    return _count(c, CALLS.c.study_id == trial.study_id, CALLS.c.trial == trial.number)


def _count(c: sa.Connection, *conditions: sa.ColumnElement[bool]) -> int:
    query: Any = sa.select(sa.func.count()).select_from(CALLS).where(*conditions)
    return int(c.execute(query).scalar_one())


def forget_study(c: sa.Connection, study_id: int) -> None:
    """Delete a study's calls."""
    if has_table(c):
        c.execute(sa.delete(CALLS).where(CALLS.c.study_id == study_id))
