"""The recipe itself, to read and to copy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from finetune.recipe import Recipe

from ...formatting import setting
from ...study.confirmation import Confirmation
from ..data import StudyData
from ..document import Block, Code, Section, Table, Text

_NO_CHOICE = "seed"  # of the call: a study file names seeds of its instances


def recipe_section(data: StudyData) -> Section:
    """What the best recipe has otherwise than the default."""
    name, recipe = best_recipe(data)
    if recipe is not None:
        block = _changes(name, recipe)
    elif name:
        block = Text(f"The recipe of {name}, is not of this release.")
    else:
        block = Text("There is no best recipe yet.")
    return Section("recipe", "The recipe", [block])


def copy_section(data: StudyData) -> Section | None:
    """All of the best recipe as JSON and as TOML; None if there is none to copy."""
    _, recipe = best_recipe(data)
    if recipe is None:
        return None
    return Section(
        "copy",
        "The recipe to copy",
        [
            Text(
                f"Its digest is {recipe.digest}. As JSON it is what --recipe of hpo.confirm and "
                "hpo.export takes; as TOML it is a table of a study file.",
                aside=True,
            ),
            Code("recipe.json", recipe.to_json()),
            Code("[fixed] of a study file", to_toml(recipe)),
        ],
    )


def best_recipe(data: StudyData) -> tuple[str, Recipe | None]:
    """Its name, empty if there is none yet; and itself, if this release can read it."""
    confirmed = data.confirmation
    if isinstance(confirmed, Confirmation):
        return f"{confirmed.title}, confirmed", confirmed.parsed_recipe()
    if data.best:
        return f"trial {data.best[0].number}, not confirmed", data.best[0].recipe
    return "", None


def _changes(name: str, recipe: Recipe) -> Block:
    rows = list(_changed(recipe))
    if not rows:
        return Text(f"It is the default recipe ({name}).")
    return Table(
        f"What it has otherwise than the default recipe ({name})",
        ("field", "value", "default", "unit", "meaning"),
        rows,
        numbers=(1, 2),
    )


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
