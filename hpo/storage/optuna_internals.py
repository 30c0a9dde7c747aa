"""The adapter to Optuna's private parts, each with the reason why it is used.

Optuna's release is pinned because of them. Where Optuna changes, this module changes.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage

# A claim, a batch of writes and a heartbeat each have to be one transaction, and reading a study
# takes few statements. `RDBStorage` makes a transaction of each parameter, attribute and report.
from optuna.storages._rdb import models

# Not exported, though it is the return type of the public `BaseStorage.get_all_studies`.
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial

__all__ = [
    "FrozenStudy",
    "id_of",
    "open_rdb",
    "stored_report",
    "stored_value",
    "table",
]

_checked: set[str] = set()  # releases of tables that this process has found usable


def table(name: str) -> sa.Table:
    """One of Optuna's tables."""
    found: sa.Table = models.BaseModel.metadata.tables[name]
    return found


def stored_value(value: float) -> tuple[float | None, Any]:
    """A trial's value in the table's form: SQL has no infinities, so a kind stands for them."""
    return models.TrialValueModel.value_to_stored_repr(value)


def stored_report(value: float) -> tuple[float | None, Any]:
    """An intermediate value in the table's form: a kind stands for infinities and NaN."""
    return models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)


def id_of(trial: FrozenTrial) -> int:
    """A trial's key in the database; only its number is public."""
    return trial._trial_id


def open_rdb(url: str, engine_options: dict[str, Any]) -> RDBStorage:
    """Open Optuna's own storage, which creates missing tables.

    Raises:
        RuntimeError: the tables are of a release that this Optuna can't use.
    """
    rdb = RDBStorage(url, engine_options, skip_compatibility_check=True)
    release = rdb.get_current_version()
    if release not in _checked:
        # The check reads all of Optuna's migrations, which is slow; `RDBStorage` always runs it.
        rdb._version_manager.check_table_schema_compatibility()
        _checked.add(release)
    return rdb
