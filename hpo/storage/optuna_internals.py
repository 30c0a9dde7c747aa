"""What this package uses of Optuna that is not public, each with the reason.

Optuna's release is pinned for its sake. Where Optuna changes, this module changes.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage

# A claim, a block of writes and a heartbeat have to be one transaction, and a look at a study few
# statements. `RDBStorage` makes a transaction of each parameter, attribute and report.
from optuna.storages._rdb import models

# The return type of `BaseStorage.get_all_studies`, which is public.
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
    """A trial's value as the table holds it: infinities have no number in SQL, but a kind."""
    return models.TrialValueModel.value_to_stored_repr(value)


def stored_report(value: float) -> tuple[float | None, Any]:
    """An intermediate value as the table holds it: infinities and NaN are kinds."""
    return models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)


def id_of(trial: FrozenTrial) -> int:
    """A trial's key in the database; only its number is public."""
    return trial._trial_id


def open_rdb(url: str, engine_options: dict[str, Any]) -> RDBStorage:
    """Optuna's own storage, which makes the tables if need be.

    Raises:
        RuntimeError: the tables are of a release that this Optuna can't use.
    """
    rdb = RDBStorage(url, engine_options, skip_compatibility_check=True)
    release = rdb.get_current_version()
    if release not in _checked:
        # The check reads all of Optuna's migrations. `RDBStorage` runs it each time or never.
        rdb._version_manager.check_table_schema_compatibility()
        _checked.add(release)
    return rdb
