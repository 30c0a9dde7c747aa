"""A study of very many stored trials, quickly: a few real ones, repeated by the server itself."""

from __future__ import annotations

import sqlalchemy as sa

from hpo.storage import tables as db
from hpo.storage.url import parse_url
from hpo.study.config import load_study_file

from .storage_fill import fill, make_trials

DISTINCT = 300
_CHILDREN = (db.PARAMS, db.USER_ATTRS, db.SYSTEM_ATTRS, db.INTERMEDIATE, db.VALUES)


def fill_many(url: str, count: int) -> None:
    """Fill an empty PostgreSQL database with so many finished trials of the study ``runes``.

    Of these at most `DISTINCT` differ by more than their numbers.
    """
    few = min(DISTINCT, count)
    fill(url, make_trials(load_study_file("runes-default"), few))
    engine = sa.create_engine(parse_url(url))
    with engine.begin() as c:
        heads = _columns(db.TRIALS)
        rest = ", ".join(name for name in heads if name != "number")
        c.exec_driver_sql(
            f"INSERT INTO trials (number, study_id, {rest}) "
            f"SELECT number + {few} * again, study_id, {rest} "
            f"FROM trials, generate_series(1, {count // few}) AS again "
            f"WHERE number + {few} * again < {count} ORDER BY again, number"
        )
        for table in _CHILDREN:
            names = ", ".join(_columns(table))
            c.exec_driver_sql(
                f"INSERT INTO {table.name} (trial_id, {names}) "
                f"SELECT made.trial_id, {names} FROM trials AS made "
                f"JOIN trials AS model ON model.number = mod(made.number, {few}) "
                f"JOIN {table.name} AS rows ON rows.trial_id = model.trial_id "
                f"WHERE made.number >= {few} ORDER BY made.trial_id"
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.exec_driver_sql("VACUUM ANALYZE")  # as the server does by itself in time
    engine.dispose()


def _columns(table: sa.Table) -> list[str]:
    """Those that are neither the row's key nor its owner's, quoted where they have to be."""
    quoted = {"key": '"key"'}
    return [
        quoted.get(c.name, c.name)
        for c in table.columns
        if not c.primary_key and not c.foreign_keys
    ]
