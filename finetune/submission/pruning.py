"""Source text without the methods and parameters that nothing uses any more."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .program import Definition, Program, first_line
from .scopes import FUNCTIONS, Function
from .text import Edit, Text

_IMPURE = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.Starred)


def prune(sources: Mapping[str, str], entry: tuple[str, str]) -> dict[str, str]:
    """``sources`` without methods that nothing names and parameters that their function ignores.

    The entry's own parameters stay, and so do those whose arguments might do something.

    Raises:
        JoinError: the sources can't be joined.
    """
    sources = dict(sources)
    while (changed := next(_simpler(sources, entry), None)) is not None:
        sources |= changed
    return sources


def _simpler(sources: Mapping[str, str], entry: tuple[str, str]) -> Iterator[dict[str, str]]:
    """Modules that are simpler than they were, with their texts; none: all is needed."""
    program = Program(sources, entry)
    for definition, method in _unused_methods(program):
        yield {definition.module: _without_lines(sources[definition.module], method)}
    for definition in sorted(program.kept - {program.entry}, key=str):
        function = _called(definition)
        calls = _calls(program, definition)
        if function is None or calls is None:
            continue
        skipped = 1 if isinstance(definition.node, ast.ClassDef) else 0  # self
        for index, argument in enumerate(function.args.args[skipped:]):
            if argument.arg in {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}:
                continue
            changed = _without_parameter(sources, definition, function, index, skipped, calls)
            if changed is not None:
                yield changed


def _unused_methods(program: Program) -> Iterator[tuple[Definition, Function]]:
    """Methods that nothing kept mentions.

    Classes that inherit are left alone: their methods may be called by the base class.
    """
    nodes = [node for d in program.kept for node in ast.walk(d.node)]
    mentioned = {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    for definition in sorted(program.kept, key=str):
        if not isinstance(definition.node, ast.ClassDef) or definition.node.bases:
            continue
        for method in definition.node.body:
            if not isinstance(method, FUNCTIONS) or method.name.endswith("__"):
                continue
            if method.name not in mentioned:
                yield definition, method


def _without_lines(source: str, node: ast.stmt) -> str:
    lines = source.splitlines(keepends=True)
    start = first_line(node) - 1
    while lines[start - 1].lstrip().startswith("#"):
        start -= 1
    while not lines[start - 1].strip():
        start -= 1
    return "".join([*lines[:start], *lines[node.end_lineno :]])


def _called(definition: Definition) -> Function | None:
    """What runs when a definition is called, if its parameters may be changed."""
    node = definition.node
    if isinstance(node, ast.ClassDef) and not node.decorator_list:
        found = [m for m in node.body if isinstance(m, FUNCTIONS) and m.name == "__init__"]
        return found[0] if found else None
    return node if isinstance(node, FUNCTIONS) and not node.decorator_list else None


class _Call(NamedTuple):
    module: str
    node: ast.Call


def _calls(program: Program, called: Definition) -> list[_Call] | None:
    """Every call of a definition; None: something else is done with it, too."""
    found = []
    for definition in program.kept:
        uses = [used.node for used, target in program.references(definition) if target is called]
        if not uses:
            continue
        calls = [n for n in ast.walk(definition.node) if isinstance(n, ast.Call)]
        by_function = {id(n.func): n for n in calls}
        harmless = {id(n) for n in _annotations(definition.node)}
        harmless |= {
            id(n)
            for call in calls
            if isinstance(call.func, ast.Name) and call.func.id == "isinstance"
            for argument in call.args[1:]
            for n in ast.walk(argument)
        }
        for use in uses:
            if id(use) in by_function:
                found.append(_Call(definition.module, by_function[id(use)]))
            elif id(use) not in harmless:
                return None
    return found


def _annotations(node: ast.AST) -> Iterator[ast.AST]:
    for inner in ast.walk(node):
        for name in ("annotation", "returns"):
            annotation = getattr(inner, name, None)
            if annotation is not None:
                yield from ast.walk(annotation)


def _without_parameter(
    sources: Mapping[str, str],
    definition: Definition,
    function: Function,
    index: int,
    skipped: int,
    calls: list[_Call],
) -> dict[str, str] | None:
    """The texts of modules without a parameter and its arguments; None: it has to stay."""
    a = function.args
    if a.posonlyargs or a.vararg or a.kwarg:
        return None
    texts = {
        module: Text(sources[module]) for module in {definition.module, *(c.module for c in calls)}
    }
    edits: dict[str, list[Edit]] = {module: [] for module in texts}
    text = texts[definition.module]
    argument = a.args[index + skipped]
    defaults = dict(zip([x.arg for x in a.args[::-1]], a.defaults[::-1], strict=False))
    spans = []
    for x in a.args:
        start, end = text.span(x)
        spans.append((start, text.span(defaults[x.arg])[1] if x.arg in defaults else end))
    edits[definition.module].append(_removal(spans, index + skipped))
    for module, call in calls:
        texts_there = texts[module]
        parts: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
        if any(isinstance(x, ast.Starred) or getattr(x, "arg", "") is None for x in parts):
            return None
        named = [i for i, k in enumerate(call.keywords) if k.arg == argument.arg]
        if index < len(call.args):
            place = index
        elif named:
            place = len(call.args) + named[0]
        else:
            continue
        value = parts[place]
        if any(isinstance(n, _IMPURE) for n in ast.walk(value)):
            return None
        edits[module].append(_removal([texts_there.span(x) for x in parts], place))
    changed = {module: texts[module].edited(edits[module]) for module in texts}
    try:
        for source in changed.values():
            ast.parse(source)
    except SyntaxError:  # such as of an argument in parentheses
        return None
    return changed


def _removal(spans: list[tuple[int, int]], index: int) -> Edit:
    """Takes one of several things between commas away, and a comma."""
    if index + 1 < len(spans):
        return Edit(spans[index][0], spans[index + 1][0], "")
    return Edit(spans[index - 1][1] if index else spans[index][0], spans[index][1], "")
