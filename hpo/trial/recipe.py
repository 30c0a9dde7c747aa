"""A trial's recipe, as it is stored: all values of the study's method."""

from __future__ import annotations

import json
from typing import Any

import optuna

from ..problem.base import Method

RECIPE_KEY = "recipe"  # the user attribute, JSON


def recipe_of(trial: optuna.trial.FrozenTrial, method: Method) -> dict[str, Any]:
    """The values that a trial ran.

    Raises:
        KeyError: it stored none.
        TypeError: they are no JSON object.
        InvalidValuesError: this release's method has other fields, a ValueError as those of JSON.
    """
    values = json.loads(trial.user_attrs[RECIPE_KEY])
    if not isinstance(values, dict):
        raise TypeError(f"a recipe is a JSON {type(values).__name__}")
    return method.complete(values)
