"""Load methods and problems by their names in study files."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from .base import Method, Problem
from .settings import Confirm, Estimator, Instances

RECIPE, RUNES = "recipe", "runes"  # this project's own; others are MODULE:ATTRIBUTE


@cache
def load_method(name: str) -> Method:
    """Load a study's method; ``MODULE:ATTRIBUTE`` names a class without arguments.

    Raises:
        ValueError: there is no such method.
    """
    if name == RECIPE:
        from .recipe_method import RecipeMethod

        return RecipeMethod()
    method: Method = _attribute(name, RECIPE)()
    return method


def load_file_method(
    path: Path, style: str | None = None, steps: str | None = None, memory_gb: float | None = None
) -> Method:
    """Load a user's own file; arguments as in `hpo.problem.file_method.FileMethod`.

    Raises:
        UserError: the file can't be read, or has no parameters of that style.
    """
    from .user_file.parameters import read_text

    return _file_method(path, read_text(path), style, steps, memory_gb)


def load_submission(path: Path) -> Method:
    """Load a file with its own values, as a method without fields.

    Raises:
        UserError: the file can't be read, is not Python, or has no ``finetune_model``.
    """
    from .file_method import FileMethod
    from .user_file.parameters import read_text

    return FileMethod(path, read_text(path), tuned=False)


def file_text_digest(path: Path) -> str:
    """Digest of a user's file and the modules that score its result, without comments.

    Raises:
        UserError: the file can't be read.
    """
    from .fingerprint import file_digest
    from .user_file.parameters import read_text

    return file_digest(read_text(path))


@cache
def _file_method(
    path: Path, text: str, style: Any, steps: str | None, memory_gb: float | None
) -> Method:
    from .file_method import FileMethod

    return FileMethod(path, text, style, steps, memory_gb)


def load_problem(
    name: str, instances: Instances, estimator: Estimator, confirm: Confirm, data: Path | None
) -> Problem:
    """Load a study's problem; ``MODULE:ATTRIBUTE`` names a class with these arguments.

    Args:
        data: directory of the data; None: the default places.

    Raises:
        ValueError: there is no such problem.
    """
    if name == RUNES:
        from .runes import RuneProblem

        return RuneProblem(instances, estimator, confirm, data)
    problem: Problem = _attribute(name, RUNES)(instances, estimator, confirm, data)
    return problem


def check_name(name: str, known: str) -> None:
    """Raise ValueError unless ``name`` is ``known`` or can be imported."""
    if name != known:
        _attribute(name, known)


def _attribute(name: str, known: str) -> Any:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{name!r} is unknown; write {known}, or MODULE:CLASS of your own")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} can't be imported: {error}") from error
