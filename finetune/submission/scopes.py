"""Scopes: which names in a statement are the module's, and which are evaluated when it runs."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_FIELD_BASES = ("NamedTuple", "TypedDict")


class GlobalName(NamedTuple):
    """An occurrence of a name that the module binds, imports, or takes from the builtins."""

    node: ast.Name
    hidden: frozenset[str]  # names bound by enclosing functions, which mean something else here
    ambiguous: bool = False  # a class binds it, too, so its meaning depends on when it runs


def global_names(statement: ast.stmt) -> list[GlobalName]:
    """All occurrences in a statement of names of the module's own scope."""
    finder = _Finder()
    finder.visit(statement)
    return finder.found


class _Finder(ast.NodeVisitor):
    """Applies Python's rules: a function sees enclosing functions' names, but not a class's."""

    def __init__(self) -> None:
        self.found: list[GlobalName] = []
        self._functions: list[set[str]] = []  # names bound in enclosing functions
        self._class: set[str] = set()  # names bound in the class body being visited

    def visit_Name(self, node: ast.Name) -> None:
        hidden = frozenset[str]().union(*self._functions)
        if node.id in self._class:
            if isinstance(node.ctx, ast.Load):
                self.found.append(GlobalName(node, hidden, ambiguous=True))
        elif node.id not in hidden:
            self.found.append(GlobalName(node, hidden))

    def visit_FunctionDef(self, node: Function) -> None:
        a = node.args
        arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        outside = [*node.decorator_list, *a.defaults, *filter(None, a.kw_defaults)]
        self._visit_all([*outside, *(x.annotation for x in arguments), node.returns])
        names = {x.arg for x in arguments} | _bound(node.body)
        self._visit_inside(names, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        a = node.args
        self._visit_all([*a.defaults, *a.kw_defaults])
        arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        self._visit_inside({x.arg for x in arguments}, [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_all([*node.decorator_list, *node.bases, *(k.value for k in node.keywords)])
        around, self._class = self._class, _bound(node.body)
        self._visit_all(node.body)
        self._class = around

    def generic_visit(self, node: ast.AST) -> None:
        if not isinstance(node, _COMPREHENSIONS):
            super().generic_visit(node)
            return
        self.visit(node.generators[0].iter)  # the first iterable is evaluated outside
        targets = _bound([ast.Expr(g.target) for g in node.generators])
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        iters = [g.iter for g in node.generators[1:]]
        conditions = [test for g in node.generators for test in g.ifs]
        self._visit_inside(targets, [*results, *iters, *conditions])

    def _visit_inside(self, names: set[str], nodes: Iterable[ast.AST]) -> None:
        around, self._class = self._class, set()
        self._functions.append(names)
        self._visit_all(nodes)
        self._functions.pop()
        self._class = around

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)


def _bound(body: Iterable[ast.AST]) -> set[str]:
    """Names that the body of a function or a class binds, without those of inner scopes."""
    names: set[str] = set()
    elsewhere: set[str] = set()  # names declared global or nonlocal
    queue = list(body)
    while queue:
        node = queue.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            names.add(node.name)
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, _COMPREHENSIONS):  # only ``:=`` binds outside of it
            inner = (n for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
            names |= {n.target.id for n in inner}
            continue
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(a.asname or a.name).partition(".")[0] for a in node.names}
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            elsewhere |= set(node.names)
        for attribute in ("name", "rest"):  # of exception handlers and patterns
            value = getattr(node, attribute, None)
            if isinstance(value, str) and not isinstance(node, ast.alias):
                names.add(value)
        queue += ast.iter_child_nodes(node)
    return names - elsewhere


class Evaluated(NamedTuple):
    """An expression that is evaluated when a statement of a module runs."""

    node: ast.expr | ast.stmt
    kind: str  # "value", "called", "annotation", or "field": an annotation that can't be a string


def evaluated(statement: ast.stmt, fields: bool = False) -> Iterator[Evaluated]:
    """Expressions that are evaluated when ``statement`` runs, without the bodies of functions.

    Args:
        fields: whether annotated names in it are fields of a data class.
    """
    if isinstance(statement, FUNCTIONS):
        a = statement.args
        yield from (Evaluated(node, "called") for node in statement.decorator_list)
        yield from (Evaluated(node, "value") for node in [*a.defaults, *a.kw_defaults] if node)
        arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        annotations = [*(x.annotation for x in arguments), statement.returns]
        yield from (Evaluated(node, "annotation") for node in annotations if node)
    elif isinstance(statement, ast.ClassDef):
        yield from (Evaluated(node, "called") for node in statement.decorator_list)
        bases = [*statement.bases, *(k.value for k in statement.keywords)]
        yield from (Evaluated(node, "value") for node in bases)
        has_fields = any("dataclass" in ast.unparse(d) for d in statement.decorator_list)
        has_fields |= any(ast.unparse(b).endswith(_FIELD_BASES) for b in statement.bases)
        for inner in statement.body:
            yield from evaluated(inner, has_fields)
    elif isinstance(statement, ast.AnnAssign):
        yield Evaluated(statement.annotation, "field" if fields else "annotation")
        if statement.value:
            yield Evaluated(statement.value, "value")
    else:
        yield Evaluated(statement, "value")
