"""The recipe itself, to read and to copy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from finetune.recipe import Recipe

from ...formatting import setting
from ...study.confirmation import Confirmation, read_confirmation
from ..data import Given
from ..document import Block, Code, Section, Table, Text

_NO_CHOICE = "seed"  # of the call: a study file names seeds of its instances


def recipe_section(given: Given) -> Section:
    """What the best recipe has otherwise than the default, and all of it as JSON and TOML."""
    return Section("recipe", "The recipe", list(_blocks(given)))


def best_recipe(given: Given) -> tuple[str, Recipe | None]:
    """Its name, empty if there is none yet; and itself, if this release can read it."""
    confirmed = read_confirmation(given.attrs)
    if isinstance(confirmed, Confirmation):
        return f"{confirmed.title}, confirmed", confirmed.parsed_recipe()
    if given.best:
        return f"trial {given.best[0].number}, not confirmed", given.best[0].recipe
    return "", None


def _blocks(given: Given) -> Iterator[Block]:
    name, recipe = best_recipe(given)
    if recipe is None:
        yield Text(
            f"The recipe of {name}, is not of this release."
            if name
            else "There is no best recipe yet."
        )
        return
    rows = list(_changed(recipe))
    if rows:
        yield Table(
            f"What it has otherwise than the default recipe ({name})",
            ("field", "value", "default", "unit", "meaning"),
            rows,
            numbers=(1, 2),
        )
    else:
        yield Text(f"It is the default recipe ({name}).")
    yield Text(
        f"All of it, digest {recipe.digest}. As JSON it is what --recipe of hpo.confirm and "
        "hpo.export takes; as TOML it is a table of a study file. A click selects it.",
        aside=True,
    )
    yield Code("recipe.json", recipe.to_json())
    yield Code("[fixed] of a study file", to_toml(recipe))


def to_toml(recipe: Recipe) -> str:
    """The table ``[fixed]`` of a study file that has nothing else to choose."""
    lines = [
        f"{name} = {json.dumps(value)}"  # numbers, plain words and lists of them: TOML's as well
        for name, value in recipe.to_dict().items()
        if name != _NO_CHOICE
    ]
    return "\n".join(["[fixed]", *lines])


def _changed(recipe: Recipe) -> Iterator[tuple[str, ...]]:
    for field in dataclasses.fields(Recipe):
        value, default = getattr(recipe, field.name), getattr(Recipe(), field.name)
        if value != default:
            unit = str(field.metadata.get("unit", "")).removesuffix("1")
            yield field.name, setting(value), setting(default), unit, field.metadata["meaning"]
