"""Controls of a study, such as pause and stop, and marks on dropped trials.

Controls are stored among the study's attributes, so they move and are deleted with the study. Each
function is the body of one transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from . import tables as db
from .statements import lock_study, set_attrs

PREFIX = "control:"
_DIGITS = 6  # a row's number is padded to so many digits, so that keys sort like numbers
DROPPED = "dropped"  # name of a constraint, and of the attribute that says why
_CONSTRAINT = f"constraints:{DROPPED}"  # Optuna's key of the constraint
_OLDER = "constraints"  # older key, a list, that the dashboard reads
_WORSE_THAN_ANY = 1e6


def read_controls(c: sa.Connection, study_id: int) -> list[Any]:
    """A study's controls as JSON values, oldest first."""
    attrs = db.STUDY_USER_ATTRS
    query = sa.select(attrs.c.value_json).where(
        attrs.c.study_id == study_id, attrs.c.key.startswith(PREFIX)
    )
    return [json.loads(text) for text in c.execute(query.order_by(attrs.c.key)).scalars()]


def add_control(
    c: sa.Connection, study_id: int, control: Mapping[str, Any], token: str | None = None
) -> None:
    """Append a row.

    Raises:
        KeyError: there is no such study.
    """
    lock_study(c, study_id, token)
    number = len(read_controls(c, study_id))
    key = f"{PREFIX}{number:0{_DIGITS}}"
    set_attrs(c, db.STUDY_USER_ATTRS, {"study_id": study_id}, {key: control})


def mark_dropped(c: sa.Connection, trial_id: int, why: str | None) -> None:
    """Mark a finished trial as dropped, which makes it infeasible, or remove the mark.

    Args:
        why: the reason; None removes the mark.
    """
    attrs = db.SYSTEM_ATTRS
    mine = attrs.c.trial_id == trial_id
    named = sa.select(attrs.c.key, attrs.c.value_json).where(
        mine, attrs.c.key.startswith(f"{_OLDER}:"), attrs.c.key != _CONSTRAINT
    )
    values = [json.loads(text) for _, text in sorted(map(tuple, c.execute(named)))]
    trial = {"trial_id": trial_id}
    if why is None:
        user = db.USER_ATTRS
        c.execute(sa.delete(attrs).where(mine, attrs.c.key == _CONSTRAINT))
        c.execute(sa.delete(user).where(user.c.trial_id == trial_id, user.c.key == DROPPED))
    else:
        set_attrs(c, attrs, trial, {_CONSTRAINT: _WORSE_THAN_ANY})
        set_attrs(c, db.USER_ATTRS, trial, {DROPPED: why})
        values.append(_WORSE_THAN_ANY)
    set_attrs(c, attrs, trial, {_OLDER: values})
