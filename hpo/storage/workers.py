"""A row of each worker about itself, among its study's attributes.

There the rows move and are deleted with the study.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from . import tables as db
from .statements import lock_study, set_attrs

PREFIX = "worker:"  # then the worker's name


def write_entry(
    c: sa.Connection, study_id: int, worker: str, entry: Mapping[str, Any], token: str | None = None
) -> None:
    """Write or replace a worker's row; the body of one transaction.

    Args:
        token: token of the study, as in `lock_study`.

    Raises:
        KeyError: there is no such study.
    """
    lock_study(c, study_id, token)
    attrs = {f"{PREFIX}{worker}": entry}
    set_attrs(c, db.STUDY_USER_ATTRS, {"study_id": study_id}, attrs)
