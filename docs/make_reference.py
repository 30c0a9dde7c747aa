"""Write the pages of docs/reference from the code: ``python docs/make_reference.py``.

`studies.md` has every key of a study file, from the models that read it. `commands.md` has the help
of every command, and `python.md` the docstrings of the public names. A test compares the pages with
what this writes.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import hpo
from hpo.commands import first_line, modules
from hpo.errors import EXIT_CODES
from hpo.study.config import StudyConfig
from hpo.study.descriptions import key_meanings
from hpo.study.space import ChoiceParameter, FloatParameter, IntParameter, SwitchParameter

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "reference"
_MADE = "<!-- Made by docs/make_reference.py; change the code, and run it again. -->\n"
_PARAMETERS = (FloatParameter, IntParameter, ChoiceParameter, SwitchParameter)
_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
}
_BOUNDS = {
    "exclusiveMinimum": "over",
    "minimum": "from",
    "exclusiveMaximum": "under",
    "maximum": "to",
}


def studies_page() -> str:
    """Every table and key of a study file."""
    lines = [
        _MADE,
        "# Keys of a study file",
        "",
        "How to use them is in [studies.md](../studies.md).",
        "",
    ]
    lines += ["## At the top", "", *_table(StudyConfig), ""]
    for name, field in StudyConfig.model_fields.items():
        kind = _model(field.annotation)
        if kind is not None:
            lines += [f"## `[{name}]`", "", " ".join((kind.__doc__ or "").split()), ""]
            lines += [*_table(kind), ""]
            for key, inner in kind.model_fields.items():
                if (table := _model(inner.annotation)) is not None:
                    about = key_meanings(kind)[key]
                    lines += [f"### `[{name}.{key}]`", "", about, "", *_table(table), ""]
    lines += ["## `[space.NAME]`", ""]
    for kind in _PARAMETERS:
        (tag,) = kind.model_fields["type"].annotation.__args__  # type: ignore[union-attr]
        lines += [f'### `type = "{tag}"`', ""]
        lines += [*_table(kind, without=("type",)), ""]
    return "\n".join(lines).rstrip() + "\n"


def commands_page() -> str:
    """The commands, their exit codes, and the help of each."""
    lines = [_MADE, "# Commands", ""]
    lines += [
        "`runes NAME` and `python -m MODULE` start the same command. Every command has `--help`",
        "and `--version`. Those of `hpo` have `-v` (details, the traceback behind an error) and",
        "`-q` (warnings and errors only). `runes completion` prints a script for your shell.",
        "",
        "| command | module | what it does |",
        "|---|---|---|",
    ]
    known = modules()
    lines += [f"| `{name}` | `{known[name]}` | {first_line(known[name])} |" for name in known]
    lines += ["", "## Exit codes", "", "| code | what it means |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()] + [""]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    for module in known.values():
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines += [f"## `python -m {module}`", "", "```", done.stdout.rstrip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def python_page() -> str:
    """The public names of `hpo` and their docstrings."""
    lines = [_MADE, "# In Python", ""]
    lines += ["`from hpo import ...` has these names. All else may change from release to release."]
    for name in hpo.__all__:
        thing = getattr(hpo, name)
        lines += ["", f"## `{_signature(name, thing)}`", "", *_docstring(thing)]
        members = vars(thing) if thing is hpo.OpenStudy else {}
        for member, value in members.items():
            if not member.startswith("_"):
                title = member if isinstance(value, property) else _signature(member, value)
                lines += ["", f"### `{title}`", "", *_docstring(value)]
    return "\n".join(lines).rstrip() + "\n"


def _signature(name: str, thing: Any) -> str:
    if inspect.isclass(thing):
        return name
    return name + str(inspect.signature(thing)).replace("'", "")


def _docstring(thing: Any) -> list[str]:
    return ["```text", *(inspect.getdoc(thing) or "").splitlines(), "```"]


def _table(model: type[BaseModel], without: tuple[str, ...] = ()) -> list[str]:
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    meanings = key_meanings(model)
    lines = ["| key | what | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name in without or _model(field.annotation) is not None:
            continue
        default = (
            "required"
            if field.is_required()
            else _default(field.get_default(call_default_factory=True))
        )
        lines.append(f"| `{name}` | {_allowed(properties[name])} | {default} | {meanings[name]} |")
    return lines


def _model(annotation: Any) -> type[BaseModel] | None:
    """The model of a table; None: the key holds no table of its own keys."""
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if value in ((), {}, ""):
        return "empty"
    if isinstance(value, bool):
        return f"`{value}`".lower()
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _allowed(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        kinds = [_allowed(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of: {_allowed(schema['items'])}" if schema.get("items") else "list"
    if kind == "object":
        return "table"
    bounds = [
        f"{word} {schema[key]:.10g}"
        for key, word in _BOUNDS.items()
        if key in schema and abs(schema[key]) < 1e9 and schema[key] < 2**31 - 1
    ]
    return " ".join([_WORDS.get(str(kind), "any"), *bounds])


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    (OUT / "studies.md").write_text(studies_page(), "utf-8")
    (OUT / "commands.md").write_text(commands_page(), "utf-8")
    (OUT / "python.md").write_text(python_page(), "utf-8")
