"""The recipe itself, to read and to copy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ...formatting import setting
from ...problem.base import Method, Values, changed_values, digest_of
from ...study.confirmation import Confirmation, read_confirmation
from ..data import Given
from ..document import Block, Code, Section, Table, Text


def recipe_section(given: Given) -> Section:
    """What the best recipe has otherwise than the default, and all of it as JSON and TOML."""
    return Section("recipe", "The recipe", list(_blocks(given)))


def best_recipe(given: Given) -> tuple[str, dict[str, Any] | None]:
    """Its name, empty if there is none yet; and itself, if this release can read it."""
    confirmed, method = read_confirmation(given.attrs), given.config.load_method()
    if isinstance(confirmed, Confirmation):
        return f"{confirmed.title}, confirmed", confirmed.parsed_recipe(method)
    if given.best:
        return f"trial {given.best[0].number}, not confirmed", given.best[0].recipe(method)
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
    method = given.config.load_method()
    rows = list(_changed(recipe, method))
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
        f"All of it, digest {digest_of(recipe)}. As JSON it is what --recipe of hpo.confirm and "
        "hpo.export takes; as TOML it is a table of a study file. A click selects it.",
        aside=True,
    )
    yield Code("recipe.json", json.dumps(recipe, indent=2))
    yield Code("[fixed] of a study file", to_toml(recipe, method))


def to_toml(recipe: Values, method: Method) -> str:
    """The table ``[fixed]`` of a study file that has nothing else to choose."""
    lines = [
        f"{name} = {json.dumps(value)}"  # numbers, plain words and lists of them: TOML's as well
        for name, value in recipe.items()
        if not method.fields[name].set_by
    ]
    return "\n".join(["[fixed]", *lines])


def _changed(recipe: Values, method: Method) -> Iterator[tuple[str, ...]]:
    for name, value in changed_values(recipe, method.fields).items():
        field = method.fields[name]
        yield name, setting(value), setting(field.default), field.unit, field.meaning
