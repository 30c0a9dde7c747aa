"""Modules of one package as one file: the same definitions in one namespace, fewer of them.

Definitions are cut out of the source as text, comments and all, and are kept when the entry
can reach them by name.  As every module's names become names of the one file, two that differ
but are called the same can't be joined; that is found and told, never guessed at.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .imports import absolute_name

_RULE = "# " + "-" * 78


class JoinError(Exception):
    """The modules can't be joined: they use something that is not provided for."""


@dataclass(frozen=True, order=True)
class _Import:
    """``import module as alias``, or ``from module import name as alias``."""

    module: str
    name: str = ""
    alias: str = ""


@dataclass(frozen=True, eq=False)
class _Definition:
    """A statement of a module that binds names, with the comments right above it."""

    names: tuple[str, ...]
    node: ast.stmt
    text: str
    after_blank: bool  # whether a blank line came before


@dataclass
class _Module:
    """A module, taken apart."""

    docstring: str
    definitions: list[_Definition] = field(default_factory=list)
    imports: dict[str, _Import] = field(default_factory=dict)  # by the name that they bind
    siblings: dict[str, str] = field(default_factory=dict)  # name -> module of the package

    def definition(self, name: str) -> _Definition | None:
        return next((d for d in self.definitions if name in d.names), None)


@dataclass(frozen=True)
class Joined:
    """What is left of the modules, as text."""

    imports: str
    first: tuple[str, ...]  # the definitions that were asked to come first
    rest: str
    attributes: frozenset[str]  # names that occur as ``something.name``


def join(
    sources: Mapping[str, str], entry: tuple[str, str], first: Iterable[tuple[str, str]]
) -> Joined:
    """Join what ``entry`` needs, each module before those that it imports.

    Args:
        sources: module -> text, of all modules that may be needed.
        entry: the module and the name of what is wanted.
        first: modules and names of what is handed back on its own, in this order.

    Raises:
        JoinError: a name is bound twice, or a statement is of an unknown kind.
    """
    modules = {name: _take_apart(name, text) for name, text in sources.items()}
    while (unused := _unused_method(modules, entry)) is not None:
        name, method = unused
        sources = {**sources, name: _without(sources[name], method)}
        modules[name] = _take_apart(name, sources[name])
    order = _importers_first(modules, entry[0])
    kept = _reachable(modules, entry)
    imports = _imports(modules, kept)
    _check_names(kept, imports)
    leading = [modules[module].definition(name) for module, name in first]
    sections = []
    for name in order:
        definitions = [d for d in modules[name].definitions if d in kept and d not in leading]
        if definitions:
            heading = "" if name == entry[0] else _heading(modules[name].docstring)
            sections.append(heading + _laid_out(definitions))
    nodes = [node for d in kept for node in ast.walk(d.node)]
    return Joined(
        imports=_import_block(imports.values()),
        first=tuple(d.text for d in leading if d is not None),
        rest="\n\n\n".join(sections) + "\n",
        attributes=frozenset(n.attr for n in nodes if isinstance(n, ast.Attribute)),
    )


def _take_apart(module: str, source: str) -> _Module:
    tree = ast.parse(source)
    parts = _Module(docstring=ast.get_docstring(tree) or "")
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
        start = _first_line(node)
        while start > 1 and lines[start - 2].startswith("#"):
            start -= 1
        text = "\n".join(lines[start - 1 : node.end_lineno])
        after_blank = start == 1 or not lines[start - 2].strip()
        parts.definitions.append(_Definition(names, node, text, after_blank))
    return parts


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])


def _bound_names(node: ast.stmt) -> tuple[str, ...]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return (node.name,)
    targets = node.targets if isinstance(node, ast.Assign) else ()
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return tuple(n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))


def _note_import(module: str, node: ast.Import | ast.ImportFrom, parts: _Module) -> None:
    for alias in node.names:
        bound = alias.asname or alias.name
        if isinstance(node, ast.Import):
            parts.imports[bound] = _Import(alias.name, alias=alias.asname or "")
        elif node.level == 0:
            parts.imports[bound] = _Import(node.module or "", alias.name, alias.asname or "")
        elif node.module and not alias.asname:
            parts.siblings[bound] = absolute_name(module, node.level, node.module)
        else:
            raise JoinError(f"{module}.py, line {node.lineno}: write from .module import name")


def _importers_first(modules: Mapping[str, _Module], entry: str) -> list[str]:
    """Every module that ``entry`` needs, itself first, each after all that import it."""
    done: list[str] = []

    def visit(name: str) -> None:
        if name not in done:
            # Last to first, because what is done first ends up last.
            for sibling in reversed(list(dict.fromkeys(modules[name].siblings.values()))):
                visit(sibling)
            done.append(name)

    visit(entry)
    return done[::-1]


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _reachable(
    modules: Mapping[str, _Module], entry: tuple[str, str]
) -> dict[_Definition, _Module]:
    """Definitions that ``entry`` can reach by name, each with its module."""
    kept: dict[_Definition, _Module] = {}
    queue = [entry]
    while queue:
        module, name = queue.pop()
        if name in modules[module].siblings:
            queue.append((modules[module].siblings[name], name))
            continue
        definition = modules[module].definition(name)
        if definition is None:
            if (module, name) == entry or name not in modules[module].imports:
                raise JoinError(f"{module}.py does not define {name}")
            continue
        if definition in kept:
            continue
        kept[definition] = modules[module]
        known = {
            *modules[module].siblings,
            *(n for d in modules[module].definitions for n in d.names),
        }
        queue += [(module, used) for used in sorted(_names(definition.node) & known)]
    return kept


def _imports(
    modules: Mapping[str, _Module], kept: Mapping[_Definition, _Module]
) -> dict[str, _Import]:
    """What the kept definitions import, by the name that is bound."""
    found: dict[str, _Import] = {}
    for definition, module in kept.items():
        for name in _names(definition.node) & module.imports.keys():
            if found.setdefault(name, module.imports[name]) != module.imports[name]:
                raise JoinError(f"two imports bind {name}; give one another name")
    return found


def _check_names(kept: Iterable[_Definition], imports: Mapping[str, _Import]) -> None:
    """No name may mean two things, or hide a builtin that another module may mean."""
    seen = set(imports)
    for definition in kept:
        for name in definition.names:
            if name in seen:
                raise JoinError(f"{name} is bound in two modules; give one another name")
            if hasattr(builtins, name):
                raise JoinError(f"{name} hides a builtin; give it another name")
            seen.add(name)


def _unused_method(
    modules: Mapping[str, _Module], entry: tuple[str, str]
) -> tuple[str, ast.FunctionDef] | None:
    """A method that nothing which is kept mentions, and the name of its module.

    Classes that inherit are left alone: their methods may be called by the base class.
    """
    kept = _reachable(modules, entry)
    nodes = [node for d in kept for node in ast.walk(d.node)]
    mentioned = {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    for name, module in modules.items():
        classes = [d.node for d in module.definitions if d in kept]
        for node in classes:
            if not isinstance(node, ast.ClassDef) or node.bases:
                continue
            for method in node.body:
                if not isinstance(method, ast.FunctionDef) or method.name.endswith("__"):
                    continue
                if method.name not in mentioned:
                    return name, method
    return None


def _without(source: str, node: ast.stmt) -> str:
    lines = source.splitlines(keepends=True)
    start = _first_line(node) - 1
    while not lines[start - 1].strip():
        start -= 1
    return "".join([*lines[:start], *lines[node.end_lineno :]])


def _heading(docstring: str) -> str:
    lines = [f"# {line}".rstrip() for line in docstring.splitlines()]
    return "\n".join([_RULE, *lines, "", ""])


def _laid_out(definitions: list[_Definition]) -> str:
    """As in the source: a line between constants where there was one, two around the rest."""
    text, previous = "", None
    for d in definitions:
        blocks = isinstance(d.node, (ast.FunctionDef, ast.ClassDef)) or isinstance(
            previous, (ast.FunctionDef, ast.ClassDef)
        )
        if previous is not None:
            text += "\n\n\n" if blocks else "\n\n" if d.after_blank else "\n"
        text, previous = text + d.text, d.node
    return text


def _import_block(imports: Iterable[_Import]) -> str:
    """Sorted as isort does: the standard library, then the rest; plain imports first."""
    blocks = ["from __future__ import annotations"]
    for standard in (True, False):
        group = [i for i in set(imports) if _is_standard(i.module) == standard]
        plain = sorted(i for i in group if not i.name)
        lines = [f"import {i.module}" + (f" as {i.alias}" if i.alias else "") for i in plain]
        for module in sorted({i.module for i in group if i.name}):
            names = sorted((i for i in group if i.module == module and i.name), key=_import_key)
            words = [i.name + (f" as {i.alias}" if i.alias else "") for i in names]
            lines.append(f"from {module} import {', '.join(words)}")
        if lines:
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _import_key(item: _Import) -> tuple[int, str]:
    kind = 0 if item.name.isupper() else 1 if item.name[0].isupper() else 2
    return kind, item.name


def imported_packages(source: str) -> Iterator[str]:
    """Top-level packages that a file imports, wherever in it, other than the standard library."""
    for node in ast.walk(ast.parse(source)):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        for module in modules:
            if not _is_standard(module):
                yield module.partition(".")[0] or module
