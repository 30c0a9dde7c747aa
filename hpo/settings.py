"""What the tables of study files and machine profiles are made of, and how the files are read."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .arguments import LARGEST_COUNT, LARGEST_NUMBER, LARGEST_SEED
from .errors import UserError

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Natural = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Count = Annotated[int, Field(gt=0, le=LARGEST_COUNT)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST_NUMBER)]
Speed = Annotated[float, Field(ge=0.001, le=1000)]  # over that of a reference machine

T = TypeVar("T", bound="Table")

_SHOWN = 100  # characters of a value in a message
# What pydantic's kinds of problems mean for who writes a file; others in its own words.
_ALLOWED = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "finite_number": "a finite number",
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"
    ),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "literal_error": "{expected}",
    "string_type": "text in quotes",
    "string_too_short": "at least one character",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length}",
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a table"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
}
_TYPES = '"float", "int", "choice" or "switch"'
_TAGS = ("float", "int", "choice", "switch")  # pydantic names the kind of a parameter in the path


class Table(BaseModel):
    """A table of a file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TableError(Exception):
    """What is to be mended in a table, in one line."""


def find_file(name: str, directory: Path, what: str, file: str, also: Sequence[str] = ()) -> Path:
    """The TOML file that a person named by its path, or by its name in a directory.

    Args:
        directory: looked for here and in this package.
        what: the thing that the file describes, for messages.
        file: such a file with its article, for messages.
        also: names that need no file.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    try:
        return _find(name, directory, what, file, also)
    except OSError as error:  # a name that is too long, a directory that can't be entered
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
        raise UserError(f"{what} {shown}: {error.strerror}; write a name or a path") from error


def _find(name: str, directory: Path, what: str, file: str, also: Sequence[str]) -> Path:
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{path}: no such {file.partition(' ')[2]}")
        return path
    directories = [directory, Path(__file__).parent / directory]
    for place in directories:
        path = place / f"{name}.toml"
        if path.is_file():
            return path
    found = sorted({p.stem for place in directories for p in place.glob("*.toml")})
    known = ", ".join([*also, *(found or ["(none found)"])])
    raise UserError(f"no {what} {name!r}; write one of {known}, or the path of {file}")


def read_file(path: Path, kind: type[T], keys: str = "") -> T:
    """Read and validate a TOML file.

    Args:
        keys: the page that describes all keys.

    Raises:
        UserError: the file can't be read, or is no TOML.
        TableError: a key is unknown, missing or out of its range.
    """
    try:
        return kind.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except ValidationError as error:
        raise TableError(first_problem(error, keys)) from error
    except ValueError as error:  # of TOML, of UTF-8, or a number of thousands of digits
        raise UserError(f"{path} is not TOML: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} has tables in tables without end; write fewer") from error


def first_problem(error: ValidationError, keys: str = "") -> str:
    """The first thing to mend, in one line: the key, what is allowed, what was found.

    Args:
        keys: the page that describes all keys.
    """
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"] if part not in _TAGS) or "study"
    there = f", or see {keys} for those there are" if keys else ""
    kind, message = problem["type"], problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}; remove it{there}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    if problem["type"] == "value_error":
        return message if where == "study" else f"{where}: {message}"
    if kind == "union_tag_not_found":
        return f"{where} has no type; write type = {_TYPES}"
    if kind == "union_tag_invalid":
        return f"{where}.type is {problem['ctx']['tag']!r}; write {_TYPES}"
    allowed = _ALLOWED.get(kind) or message.removeprefix("Input should be ")
    bounds = {name: _number(bound) for name, bound in problem.get("ctx", {}).items()}
    found = repr(problem["input"])
    found = found if len(found) <= _SHOWN else f"{found[:_SHOWN]}..."
    return f"{where} is {found}; write {allowed.format(**bounds)}"


def _number(bound: Any) -> Any:
    return f"{bound:.10g}" if isinstance(bound, (int, float)) else bound
