"""A recipe and the modules that it runs in, as the one file that is handed in."""

from __future__ import annotations

import ast
import io
import os
import shutil
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from ..recipe import GROUPS, Recipe
from .docstrings import shortened
from .folding import fold
from .imports import needed_modules
from .joining import Joined, Section, join

# The order in which the file is read, whatever imports what.  A module that this list lacks can't
# be part of the file; one that the recipe does not need is passed over.
SECTIONS = (
    Section("The recipe", ("recipe",)),
    Section("The call and its loop", ("adapt", "errors")),
    Section(
        "Drawings",
        (
            *("data.drawings", "augment.bitmaps", "augment.resizing", "augment.pen"),
            *("augment.registration", "augment.spline", "augment.descent", "canvas"),
        ),
    ),
    Section("Augmentation", ("augment.mix",)),
    Section(
        "Prediction",
        (
            *("predict.posterior", "predict.head", "predict.levels", "predict.bank"),
            *("predict.windows", "model.unet", "model.groups", "model.norms", "flow"),
        ),
    ),
    Section(
        "Training: batches, optimizer and schedule",
        ("train.run", "train.learners", "train.optim", "train.schedule"),
    ),
    Section("The machine", ("machine.device", "machine.threads")),
)
_ENTRY = ("adapt", "finetune_model")
_TITLE = "Adapt a pretrained rectified-flow network to a new class from ten drawings."
_LICENSE = "# SPDX-License-Identifier: MIT"
_WIDTH = 100
_SAYS = "Every value that can be tuned: change one here, and it has its effect."


def bundle(recipe: Recipe, about: str) -> str:
    """The text of a Python file with ``finetune_model`` in it that runs ``recipe``.

    Args:
        about: what the file's docstring says after its first line.

    Raises:
        JoinError: the modules can't be joined.
    """
    sources = needed_modules(_ENTRY[0])
    joined = _joined({k: shortened(text, _ENTRY) for k, text in sources.items()}, recipe)
    return formatted(f'{_LICENSE}\n"""{_TITLE}\n\n{about}\n"""\n\n{joined.text}')


def _joined(sources: Mapping[str, str], recipe: Recipe) -> Joined:
    """The parts that the recipe needs.

    A field's value is built into the code, as branches that are gone, only if nothing reads it
    any more: every value that the file shows can be changed there and has its effect.
    """
    values = recipe.to_dict() | {"GROUPS": list(GROUPS)}
    shown: frozenset[str] = frozenset()
    while True:
        folded, decided = dict(sources), frozenset[str]()
        for name in sources.keys() - {"recipe"}:
            folded[name], fields_of = fold(sources[name], values)
            decided |= fields_of
        folded["recipe"] = recipe_module(sources["recipe"], recipe, shown, decided)
        joined = join(folded, _ENTRY, SECTIONS)
        read = joined.attributes & recipe.to_dict().keys()
        if decided & read:
            values = {name: value for name, value in values.items() if name not in decided & read}
        elif read == shown:
            return joined
        shown = read


def recipe_module(source: str, recipe: Recipe, shown: Iterable[str], decided: Iterable[str]) -> str:
    """The module `finetune.recipe` for one recipe: its values are the defaults.

    Args:
        source: of the module.
        shown: fields that become the class's.
        decided: fields that are told in a comment, because the code has them built in.
    """
    described = {f.name: f for f in fields(Recipe)}
    tree = ast.parse(source)
    (node,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Recipe")
    lines = source.splitlines()
    docstring = (ast.get_docstring(node) or "").partition("\n\nRaises:")[0]
    text = [f'"""{_SAYS}"""', "", "from typing import NamedTuple", ""]
    text += [ast.unparse(n) for n in tree.body if isinstance(n, ast.Assign)]  # constants
    text += ["", "", "class Recipe(NamedTuple):"]
    text += textwrap.indent(f'"""{docstring}\n"""', "    ").splitlines()
    if decided:
        text += ["", "    # These are decided, and built into the code below:"]
        for f in (f for f in fields(Recipe) if f.name in decided):
            told = f"{f.name} = {_literal(getattr(recipe, f.name))}: {f.metadata['meaning']}"
            first, later = "    # ", "    #   "
            text += textwrap.wrap(told, _WIDTH, initial_indent=first, subsequent_indent=later)
    title: list[str] = []
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        above = lines[statement.lineno - 2].strip()
        if above.startswith("#"):
            title = ["", f"    {above}"]
        name = statement.target.id
        if name in shown:
            text += title + _field(described[name], statement, getattr(recipe, name))
            title = []
    return "\n".join(text) + "\n"


def _field(f: Field[Any], statement: ast.AnnAssign, value: Any) -> list[str]:
    unit = f.metadata.get("unit", "1")
    comment = f"# {f.metadata['meaning']}" + (f" ({unit})" if unit not in ("1", "steps") else "")
    start = f"    {f.name}: {ast.unparse(statement.annotation)} = "
    line = f"{start}{_literal(value)}  {comment}"
    if len(line) <= _WIDTH:
        return [line]
    if len(start + _literal(value)) <= _WIDTH:
        return [f"    {comment}", start + _literal(value)]
    items = ", ".join(map(_literal, value))
    return [f"    {comment}", f"{start}(", f"        {items}", "    )"]


def _literal(value: Any) -> str:
    """As `ruff format` writes it; reading it gives the same value, floats to the last bit."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        inner = ", ".join(map(_literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


def formatted(text: str) -> str:
    """``text`` as `ruff format` writes it; as it is where ruff is not installed."""
    beside = Path(sys.executable).parent
    ruff = shutil.which("ruff", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if ruff is None:
        return text
    command = [ruff, "format", "--isolated", f"--line-length={_WIDTH}", "--stdin-filename=x.py"]
    for _ in range(2):  # again, because comments move
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            return text
        text = _narrow(result.stdout)
    return text


def _narrow(text: str) -> str:
    """Comments at the end of lines that are too long, as longer names make some, go above them."""
    lines = text.splitlines()
    moved = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            line = lines[token.start[0] - 1]
            code = line[: token.start[1]].rstrip()
            if code and len(line) > _WIDTH:
                moved.append((token.start[0] - 1, code, token.string))
    for index, code, comment in reversed(moved):
        indent = code[: len(code) - len(code.lstrip())]
        lines[index : index + 1] = [indent + comment, code]
    return "\n".join(lines) + "\n"
