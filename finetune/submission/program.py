"""Parse the modules of a package: their definitions, and the meaning of each name in them."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from .imports import absolute_name
from .scopes import FUNCTIONS, GlobalName, global_names


class JoinError(Exception):
    """The modules can't be joined, because they use something unsupported."""


@dataclass(frozen=True, order=True)
class Import:
    """``import module``, or ``from module import name``."""

    module: str
    name: str = ""


@dataclass(frozen=True, eq=False)
class Definition:
    """A statement of a module that binds names, with the comments directly above it."""

    module: str
    names: tuple[str, ...]
    node: ast.stmt
    text: str
    first_line: int  # of the text
    after_blank: bool  # whether a blank line came before

    @cached_property
    def used(self) -> list[GlobalName]:
        """Occurrences in it of names of the module."""
        return global_names(self.node)

    def __str__(self) -> str:
        return f"{self.names[0]} of {self.module}"


@dataclass
class Module:
    """A parsed module."""

    docstring: str
    definitions: dict[str, Definition] = field(default_factory=dict)  # by the names they bind
    imports: dict[str, Import] = field(default_factory=dict)  # by the name that they bind
    siblings: dict[str, tuple[str, str]] = field(default_factory=dict)  # to module and name


Target = Definition | Import


class Program:
    """All definitions that an entry can reach by name.

    Args:
        sources: texts by module, of all modules that may be needed.
        entry: module and name of the entry.

    Raises:
        JoinError: a statement is of an unsupported kind, or a name is undefined.
    """

    def __init__(self, sources: Mapping[str, str], entry: tuple[str, str]) -> None:
        self.modules = {name: _take_apart(name, text) for name, text in sources.items()}
        first = self.resolve(*entry)
        if not isinstance(first, Definition):
            raise JoinError(f"{entry[0]}.py does not define {entry[1]}")
        self.entry = first
        self.kept: set[Definition] = set()
        queue: list[Target] = [first]
        while queue:
            target = queue.pop()
            if isinstance(target, Definition) and target not in self.kept:
                self.kept.add(target)
                queue += [meant for _, meant in self.references(target)]

    def resolve(self, module: str, name: str) -> Target | None:
        """The meaning of ``name`` in ``module``; None for a builtin.

        Raises:
            JoinError: the name is undefined.
        """
        parts = self.modules[module]
        if name in parts.siblings:
            where, name_there = parts.siblings[name]
            found = self.resolve(where, name_there)
            if found is None:
                raise JoinError(f"{where}.py does not define {name_there}")
            return found
        if name in parts.definitions:
            return parts.definitions[name]
        if name in parts.imports:
            return parts.imports[name]
        if hasattr(builtins, name) or name in ("__name__", "__file__"):
            return None
        raise JoinError(f"{module}.py does not define {name}")

    def references(self, definition: Definition) -> Iterator[tuple[GlobalName, Target]]:
        """Names in a definition that refer to another definition or an import, with the target."""
        parts = self.modules[definition.module]
        for used in definition.used:
            if used.ambiguous:
                name = used.node.id
                if name in {**parts.definitions, **parts.imports, **parts.siblings}:
                    raise JoinError(
                        f"{definition}, line {used.node.lineno}: {name} is a name of the class and "
                        "of the module; give one another name"
                    )
                continue
            target = self.resolve(definition.module, used.node.id)
            if target is not None:
                yield used, target


@lru_cache(maxsize=512)
def _take_apart(module: str, source: str) -> Module:
    tree = ast.parse(source)
    parts = Module(docstring=ast.get_docstring(tree) or "")
    lines = source.splitlines()
    for node in tree.body:
        if isinstance(node, ast.Expr) and node is tree.body[0]:
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            _note_import(module, node, parts)
            continue
        names = _bound_names(node)
        if not names:
            raise JoinError(f"{module}.py, line {node.lineno}: no definition and no import")
        for inner in ast.walk(node):
            if isinstance(inner, ast.Global) or (isinstance(inner, ast.ImportFrom) and inner.level):
                raise JoinError(
                    f"{module}.py, line {inner.lineno}: no `global` and no relative import in "
                    "functions; write it at the top of the module"
                )
        start = first_line(node)
        while start > 1 and lines[start - 2].startswith("#"):
            start -= 1
        text = "\n".join(lines[start - 1 : node.end_lineno])
        after_blank = start == 1 or not lines[start - 2].strip()
        definition = Definition(module, names, node, text, start, after_blank)
        for name in names:
            if name in parts.definitions:
                raise JoinError(f"{module}.py, line {node.lineno}: {name} is bound twice")
            parts.definitions[name] = definition
    return parts


def first_line(node: ast.stmt) -> int:
    """The first line of a statement, with its decorators."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])


def _bound_names(node: ast.stmt) -> tuple[str, ...]:
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return (node.name,)
    targets = node.targets if isinstance(node, ast.Assign) else ()
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    names = (n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
    return tuple(n.id for n in names if isinstance(n.ctx, ast.Store))


def _note_import(module: str, node: ast.Import | ast.ImportFrom, parts: Module) -> None:
    where = f"{module}.py, line {node.lineno}"
    for alias in node.names:
        bound = alias.asname or alias.name
        if isinstance(node, ast.Import):
            if "." in bound:
                top = bound.partition(".")[0]
                if top != "torch":
                    raise JoinError(f"{where}: write from {bound} import a name, or import as")
                parts.imports[top] = Import(top)
            else:
                parts.imports[bound] = Import(alias.name)
        elif node.level == 0:
            parts.imports[bound] = Import(node.module or "", alias.name)
        elif node.module:
            parts.siblings[bound] = absolute_name(module, node.level, node.module), alias.name
        else:
            raise JoinError(f"{where}: write from .module import name")
