"""Source text without the branches that a recipe does not take.

A test such as ``recipe.lora_rank`` or ``recipe.schedule == "cosine"`` has one answer once the
recipe is fixed, and the branch that it rules out can go.  What counts as a recipe is read off
the annotations, which mypy has checked: a parameter of type `Recipe`, an attribute of ``self``
or a local name that holds nothing else.
"""

from __future__ import annotations

import ast
import operator
import textwrap
from collections.abc import Iterator, Mapping, Set
from typing import Any

_RECIPE = "Recipe"
_UNKNOWN = object()
_COMPARISONS: dict[type[ast.cmpop], Any] = {ast.Eq: operator.eq, ast.NotEq: operator.ne}
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def fold(source: str, values: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    """``source`` as it runs when the recipe's fields have ``values``; and which fields decided.

    Names in capitals among ``values`` are constants that a field may be compared with.
    Only what drops code is changed: a test whose answer keeps everything stays as it is.
    """
    decided: set[str] = set()
    while (edit := next(_edits(source, values), None)) is not None:
        source, fields = edit
        decided |= fields
    return source, frozenset(decided)


def _edits(source: str, values: Mapping[str, Any]) -> Iterator[tuple[str, set[str]]]:
    """``source`` with one more branch dropped, and the fields that decided it."""
    tree = ast.parse(source)
    for function, held in _functions(tree):
        recipes = _recipe_names(function, held)
        for node in ast.walk(function):
            if not isinstance(node, (ast.If, ast.IfExp)):
                continue
            fields: set[str] = set()
            answer = _answer(node.test, recipes, values, fields)
            if answer is _UNKNOWN:
                continue
            if isinstance(node, ast.IfExp):
                yield _with_expression(source, node, node.body if answer else node.orelse), fields
            elif (folded := _with_branch(source, function, node, bool(answer))) is not None:
                yield folded, fields


def _functions(tree: ast.Module) -> Iterator[tuple[_Function, frozenset[str]]]:
    """Every function, and the expressions ``self.name`` that always hold a recipe in it."""
    for node in tree.body:
        if isinstance(node, _FUNCTIONS):
            yield node, frozenset()
        elif isinstance(node, ast.ClassDef):
            methods = [m for m in node.body if isinstance(m, _FUNCTIONS)]
            held = _held_by_self(methods)
            for method in methods:
                yield method, held


def _held_by_self(methods: list[_Function]) -> frozenset[str]:
    held: set[str] = set()
    lost: set[str] = set()
    for method in methods:
        copies = _copies(method, _recipe_names(method, frozenset()))
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                (held if id(node) in copies else lost).add(ast.unparse(node))
    return frozenset(name for name in held - lost if name.startswith("self."))


def _recipe_names(function: _Function, held: frozenset[str]) -> frozenset[str]:
    """Expressions that are a recipe all through ``function``: names, and those in ``held``."""
    own = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    known = {a.arg for a in own if a.annotation and ast.unparse(a.annotation) == _RECIPE} | held
    copies = _copies(function, known)
    lost: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            (known if id(node) in copies else lost).add(node.id)
        elif isinstance(node, ast.arg) and node not in own:
            lost.add(node.arg)  # of a function within
        elif isinstance(node, ast.ExceptHandler) and node.name:
            lost.add(node.name)
    return frozenset(known - lost)


def _copies(function: _Function, recipes: Set[str]) -> set[int]:
    """Identities of the targets of ``name = recipe`` and ``self.name = recipe``."""
    return {
        id(node.targets[0])
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and ast.unparse(node.value) in recipes
    }


def _answer(
    test: ast.expr, recipes: frozenset[str], values: Mapping[str, Any], fields: set[str]
) -> Any:
    """The value of ``test``, or `_UNKNOWN`; the fields that it depends on join ``fields``."""
    if isinstance(test, ast.Constant):
        return test.value
    if isinstance(test, ast.Name) and test.id.isupper() and test.id in values:
        return values[test.id]
    if isinstance(test, ast.Attribute) and test.attr in values:
        if ast.unparse(test.value) not in recipes:
            return _UNKNOWN
        fields.add(test.attr)
        return values[test.attr]
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        operand = _answer(test.operand, recipes, values, fields)
        return _UNKNOWN if operand is _UNKNOWN else not operand
    if isinstance(test, ast.BoolOp):
        # Only the first operand: it decides before any other is looked at.
        first = _answer(test.values[0], recipes, values, fields)
        ends = isinstance(test.op, ast.Or)
        return first if first is not _UNKNOWN and bool(first) == ends else _UNKNOWN
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and type(test.ops[0]) in _COMPARISONS:
        left = _answer(test.left, recipes, values, fields)
        right = _answer(test.comparators[0], recipes, values, fields)
        if _UNKNOWN not in (left, right):
            return _COMPARISONS[type(test.ops[0])](left, right)
    return _UNKNOWN


def _with_expression(source: str, node: ast.IfExp, chosen: ast.expr) -> str:
    lines = source.splitlines(keepends=True)
    text = ast.get_source_segment(source, chosen)
    assert text is not None and node.end_lineno is not None and node.end_col_offset is not None
    first, last = node.lineno - 1, node.end_lineno - 1
    # Columns of the tree count bytes.
    before = lines[first].encode()[: node.col_offset].decode()
    after = lines[last].encode()[node.end_col_offset :].decode()
    return "".join([*lines[:first], before + text + after, *lines[last + 1 :]])


def _with_branch(source: str, function: _Function, node: ast.If, answer: bool) -> str | None:
    """``source`` with ``node`` replaced by what runs; None if everything does."""
    block = _block_of(function, node)
    after = block[block.index(node) + 1 :]
    chosen = node.body if answer else node.orelse
    leaves = bool(chosen) and isinstance(chosen[-1], (ast.Return, ast.Raise))
    if answer and not node.orelse and not (leaves and after):
        return None
    if node.orelse and node.orelse[0].col_offset == node.col_offset:
        return None  # an ``elif``
    lines = source.splitlines(keepends=True)
    first = node.lineno - 1
    assert node.end_lineno is not None and block[-1].end_lineno is not None
    end = block[-1].end_lineno if leaves else node.end_lineno
    kept = ""
    if chosen:
        assert chosen[-1].end_lineno is not None
        # From the line after the test or the last statement of the other branch: comments too.
        start = node.test.end_lineno if answer else chosen[0].lineno - 1
        kept = "".join(lines[start : chosen[-1].end_lineno])
        kept = textwrap.indent(textwrap.dedent(kept), " " * node.col_offset)
    elif len(block) == 1:
        kept = " " * node.col_offset + "pass\n"
    else:
        # What was said right above was said of what goes.
        while lines[first - 1].lstrip().startswith("#"):
            first -= 1
    return "".join([*lines[:first], kept, *lines[end:]])


def _block_of(function: _Function, statement: ast.stmt) -> list[ast.stmt]:
    for node in ast.walk(function):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and statement in block:
                return block
    raise AssertionError("a statement of the function is in one of its blocks")
