"""A trial's recipe, as it is stored."""

from __future__ import annotations

import json
from typing import Any

import optuna

from finetune.recipe import Recipe


def recipe_of(trial: optuna.trial.FrozenTrial) -> Recipe:
    """The recipe that a finished trial ran."""
    return Recipe.from_dict(json.loads(trial.user_attrs["recipe"]))


def changed_values(recipe: Recipe) -> dict[str, Any]:
    """What the recipe has otherwise than the default."""
    default = Recipe().to_dict()
    return {k: v for k, v in recipe.to_dict().items() if v != default[k]}
