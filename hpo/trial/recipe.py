"""A trial's recipe, as it is stored: all values of the study's method."""

from __future__ import annotations

from typing import Any

from ..problem.base import InvalidValuesError, Method
from .record import TrialRecord


def recipe_of(record: TrialRecord, method: Method) -> dict[str, Any]:
    """The values that a trial ran.

    Raises:
        InvalidValuesError: none are stored, or this release's method has other fields.
    """
    if record.recipe is None:
        raise InvalidValuesError("no recipe is stored")
    try:
        return method.complete(record.recipe)
    except TypeError as error:  # a value of a type that no release had
        raise InvalidValuesError(str(error)) from error
