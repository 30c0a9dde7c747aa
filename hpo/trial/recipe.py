"""A trial's recipe, as it is stored."""

from __future__ import annotations

from typing import Any

from finetune.recipe import Recipe, RecipeError

from .record import TrialRecord


def recipe_of(record: TrialRecord) -> Recipe:
    """The recipe that a trial ran.

    Raises:
        RecipeError: none is stored, or it is of a release with other fields.
    """
    if record.recipe is None:
        raise RecipeError("no recipe is stored")
    try:
        return Recipe.from_dict(record.recipe)
    except TypeError as error:  # a value of a type that no release had
        raise RecipeError(str(error)) from error


def changed_values(recipe: Recipe) -> dict[str, Any]:
    """What the recipe has otherwise than the default."""
    default = Recipe().to_dict()
    return {k: v for k, v in recipe.to_dict().items() if v != default[k]}
