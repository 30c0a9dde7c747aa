"""The recipe itself, to read and to copy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ...formatting import setting
from ...problem.base import Method, Values, changed_values, digest_of
from ...study.confirmation import Confirmation
from ..data import StudyData
from ..document import Block, Code, Section, Table, Text


def recipe_section(data: StudyData) -> Section:
    """The values in which the best recipe differs from the default."""
    name, recipe = best_recipe(data)
    if recipe is not None:
        block = _changes(name, recipe, data.config.load_method())
    elif name:
        block = Text(f"The recipe of {name}, is not of this release.")
    else:
        block = Text("There is no best recipe yet.")
    return Section("recipe", "The recipe", [block])


def copy_section(data: StudyData) -> Section | None:
    """The best recipe as JSON and as TOML, to copy; None if there is none."""
    _, recipe = best_recipe(data)
    if recipe is None:
        return None
    return Section(
        "copy",
        "The recipe to copy",
        [
            Text(
                f"Its digest is {digest_of(recipe)}. As JSON it is what --recipe of hpo.confirm "
                "and hpo.export takes; as TOML it is a table of a study file.",
                aside=True,
            ),
            Code("recipe.json", json.dumps(recipe, indent=2)),
            Code("[fixed] of a study file", to_toml(recipe, data.config.load_method())),
        ],
    )


def best_recipe(data: StudyData) -> tuple[str, dict[str, Any] | None]:
    """The best recipe's name, empty if there is none; and its values if they can be read."""
    confirmed, method = data.confirmation, data.config.load_method()
    if isinstance(confirmed, Confirmation):
        return f"{confirmed.title}, confirmed", confirmed.parsed_recipe(method)
    if data.best:
        return f"trial {data.best[0].number}, not confirmed", data.best[0].recipe(method)
    return "", None


def _changes(name: str, recipe: Values, method: Method) -> Block:
    rows = list(_changed(recipe, method))
    if not rows:
        return Text(f"It is the default recipe ({name}).")
    return Table(
        f"What it has otherwise than the default recipe ({name})",
        ("field", "value", "default", "unit", "meaning"),
        rows,
        numbers=(1, 2),
    )


def to_toml(recipe: Values, method: Method) -> str:
    """The recipe as the table ``[fixed]`` of a study file."""
    lines = [
        f"{name} = {json.dumps(value)}"  # JSON and TOML write numbers, words and lists alike
        for name, value in recipe.items()
        if not method.fields[name].set_by
    ]
    return "\n".join(["[fixed]", *lines])


def _changed(recipe: Values, method: Method) -> Iterator[tuple[str, ...]]:
    for name, value in changed_values(recipe, method.fields).items():
        field = method.fields[name]
        yield name, setting(value), setting(field.default), field.unit, field.meaning
