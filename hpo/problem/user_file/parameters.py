"""The parameters of a user's file: values in it that a search can replace.

The file is parsed and not run.  Its parameters are the first of these that it has:

- the keyword arguments of ``finetune_model`` whose defaults are plain values;
- the fields of a dataclass of the file whose instance ``Config()`` is the default of an argument;
- the module's constants: names in capital letters that get a plain value once.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import UserError
from ..base import Field
from .literals import Place, Source, literal

Style = Literal["keywords", "dataclass", "constants"]
Function = ast.FunctionDef | ast.AsyncFunctionDef

FUNCTION, REPORT = "finetune_model", "report"
_GIVEN = 2  # arguments that every call gets: a network and a dataset


@dataclass(frozen=True)
class Parameter:
    """A value of the file that can be replaced."""

    name: str
    field: Field
    place: Place  # where its default is written


@dataclass(frozen=True)
class UserFile:
    """A parsed file with a `finetune_model`."""

    path: Path
    source: Source
    style: Style | None  # None if it has no parameters
    parameters: Mapping[str, Parameter]
    others: Mapping[Style, tuple[str, ...]]  # names of the parameters in other styles
    reports: bool  # whether `finetune_model` takes ``report``

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.path.name

    def with_values(self, values: Mapping[str, Any]) -> str:
        """The file's text with these values; values equal to its own stay as they are written."""
        changed = {
            self.parameters[name].place: value
            for name, value in values.items()
            if value != self.parameters[name].field.default
        }
        return self.source.with_values(changed)


def read_text(path: Path) -> str:
    """Read a file's text without changing its line ends.

    Raises:
        UserError: the file can't be read.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; name a Python file with {FUNCTION}, from where you start"
        ) from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as such") from error


def require_parameters(file: UserFile, style: Style | None) -> None:
    """Check that a file has parameters.

    Args:
        style: the style that the parameters must have; None: any.

    Raises:
        UserError: the file has no parameters of that style.
    """
    if file.parameters:
        return
    has = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in file.others.items())
    raise UserError(
        f"{file.path} has no parameters"
        + (f' of the kind "{style}"' if style else "")
        + (f"; it has {has}" if has else f"; {_SUGGEST}")
    )


_SUGGEST = (
    f"give {FUNCTION} keyword arguments with plain defaults, such as lr=1e-4, or write "
    "constants in capitals, such as LR = 1e-4"
)


def parse_user_file(path: Path, text: str, style: Style | None = None) -> UserFile:
    """Parse a file; it may have no parameters.

    Raises:
        UserError: it is not Python, or has no ``finetune_model`` that can be called.
    """
    try:
        source = Source(text)
    except SyntaxError as error:
        where = f" line {error.lineno}" if error.lineno else ""
        raise UserError(f"{path}{where} is not Python: {error.msg}") from error
    except ValueError as error:
        raise UserError(f"{path} is not Python: {error}") from error
    function = _function(path, source)
    found: dict[Style, dict[str, Parameter]] = {}
    for kind, find in _FINDERS.items():
        if parameters := {p.name: p for p in find(source, function)}:
            found[kind] = parameters
    chosen = style or next(iter(found), None)
    return UserFile(
        path=path,
        source=source,
        style=chosen,
        parameters=found.get(chosen, {}) if chosen else {},
        others={kind: tuple(names) for kind, names in found.items() if kind != chosen},
        reports=any(a.arg == REPORT for a in _named_arguments(function)),
    )


def _function(path: Path, source: Source) -> Function:
    functions = [
        node for node in source.tree.body if isinstance(node, Function) and node.name == FUNCTION
    ]
    if not functions:
        raise UserError(
            f"{path} defines no {FUNCTION}; write def {FUNCTION}(pretrained_model, train_dataset)"
        )
    function = functions[-1]
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    required = [a.arg for a in plain[_GIVEN : len(plain) - len(arguments.defaults)]] + [
        a.arg
        for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is None
    ]
    required = [name for name in required if name != REPORT]
    if required:
        raise UserError(
            f"{path} line {function.lineno}: {FUNCTION} needs {', '.join(required)}; "
            "give a default, since only a network and a dataset are passed"
        )
    if len(plain) < _GIVEN and arguments.vararg is None:
        raise UserError(
            f"{path} line {function.lineno}: {FUNCTION} takes {len(plain)} arguments; "
            f"write def {FUNCTION}(pretrained_model, train_dataset)"
        )
    return function


def _named_arguments(function: Function) -> list[ast.arg]:
    return [*function.args.args[max(0, _GIVEN - len(function.args.posonlyargs)) :],
            *function.args.kwonlyargs]  # fmt: skip


def _defaults(function: Function) -> Iterator[tuple[ast.arg, ast.expr]]:
    """The arguments after the first two that have defaults, with their defaults."""
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    first = len(plain) - len(arguments.defaults)
    for i, default in enumerate(arguments.defaults, start=first):
        if i >= _GIVEN:
            yield plain[i], default
    for argument, keyword_default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if keyword_default is not None:
            yield argument, keyword_default


def _keywords(source: Source, function: Function) -> Iterator[Parameter]:
    for argument, default in _defaults(function):
        if argument.arg != REPORT:
            yield from _parameter(source, argument.arg, default, argument.annotation)


def _dataclass(source: Source, function: Function) -> Iterator[Parameter]:
    classes = {node.name: node for node in source.tree.body if isinstance(node, ast.ClassDef)}
    made = {  # module-level names of instances
        target.id: node.value
        for node in source.tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for _, default in _defaults(function):
        call = made.get(default.id) if isinstance(default, ast.Name) else default
        if not isinstance(call, ast.Call) or call.args or call.keywords:
            continue
        found = classes.get(call.func.id) if isinstance(call.func, ast.Name) else None
        if found is not None and any(map(_is_dataclass, found.decorator_list)):
            yield from _fields(source, found)
            return


def _is_dataclass(decorator: ast.expr) -> bool:
    named = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = named.attr if isinstance(named, ast.Attribute) else getattr(named, "id", "")
    return name == "dataclass"


def _fields(source: Source, found: ast.ClassDef) -> Iterator[Parameter]:
    for node in found.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(node.annotation):
            continue
        value = node.value
        if isinstance(value, ast.Call):  # field(default=1e-4, ...)
            value = next((k.value for k in value.keywords if k.arg == "default"), None)
        if value is not None:
            yield from _parameter(source, node.target.id, value, node.annotation)


def _constants(source: Source, function: Function) -> Iterator[Parameter]:
    stored: dict[str, int] = {}
    for any_node in ast.walk(source.tree):
        if isinstance(any_node, ast.Name) and isinstance(any_node.ctx, ast.Store):
            stored[any_node.id] = stored.get(any_node.id, 0) + 1
    for node in source.tree.body:
        target: ast.expr | None = None
        annotation = None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign):
            target, annotation = node.target, node.annotation
        if not isinstance(target, ast.Name) or not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        name = target.id
        # A name that is assigned several times has no single place for its value.
        if name.isupper() and not name.startswith("_") and stored[name] == 1 and node.value:
            yield from _parameter(source, name, node.value, annotation)


_FINDERS: Mapping[Style, Callable[[Source, Function], Iterator[Parameter]]] = {
    "keywords": _keywords,
    "dataclass": _dataclass,
    "constants": _constants,
}


def _parameter(
    source: Source, name: str, default: ast.expr, annotation: ast.expr | None
) -> Iterator[Parameter]:
    """Yield the parameter of a plain value; nothing for any other expression."""
    value = literal(default)
    if value is None:
        return
    place = source.place(default)
    meaning = source.comment_behind(place)
    is_float = isinstance(annotation, ast.Name) and annotation.id == "float"
    if isinstance(value, str) and value in (choices := _choices(annotation)):
        field = Field(value, "choice", meaning, choices=choices)
    elif isinstance(value, bool):
        field = Field(value, "bool", meaning)
    elif isinstance(value, str):
        field = Field(value, "text", meaning)
    elif isinstance(value, float) or is_float:
        field = Field(float(value), "float", meaning)
    else:
        field = Field(value, "int", meaning)
    yield Parameter(name, field, place)


def _choices(annotation: ast.expr | None) -> tuple[str, ...]:
    """The strings of ``Literal["a", "b"]``; none for any other annotation."""
    if not isinstance(annotation, ast.Subscript) or "Literal" not in ast.unparse(annotation.value):
        return ()
    named = annotation.slice
    values = map(literal, named.elts if isinstance(named, ast.Tuple) else [named])
    return tuple(value for value in values if isinstance(value, str))
