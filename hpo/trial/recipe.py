"""A trial's stored recipe: all values of the study's method."""

from __future__ import annotations

from typing import Any

from ..problem.base import InvalidValuesError, Method
from .record import TrialRecord


def recipe_of(record: TrialRecord, method: Method) -> dict[str, Any]:
    """The values that a trial ran with.

    Raises:
        InvalidValuesError: no values are stored, or this release's method has other fields.
    """
    if record.recipe is None:
        raise InvalidValuesError("no recipe is stored")
    try:
        return method.complete(record.recipe)
    except TypeError as error:  # a stored value has a type that the method does not take
        raise InvalidValuesError(str(error)) from error
