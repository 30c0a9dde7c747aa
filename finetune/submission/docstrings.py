"""Shorter docstrings for the exported file, which people read from top to bottom.

A docstring keeps its paragraphs.  Its lists of arguments, results and errors stay in the package.
"""

from __future__ import annotations

import ast
from collections.abc import Collection

from .text import Edit, Text

_SECTIONS = ("Args:", "Returns:", "Raises:")


def shortened(source: str, keep: Collection[str]) -> str:
    """``source`` with docstrings up to their first section; those of the names in ``keep`` stay."""
    text, edits = Text(source), []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) or node.name in keep:
            continue
        docstring = node.body[0]
        if ast.get_docstring(node) is None or not isinstance(docstring, ast.Expr):
            continue
        start, end = text.span(docstring)
        lines = text.slice(start, end).splitlines()
        first = next((i for i, line in enumerate(lines) if line.strip() in _SECTIONS), None)
        if first is None:
            continue
        kept = "\n".join(lines[:first]).rstrip()
        indent = " " * docstring.col_offset
        edits.append(Edit(start, end, kept + (f'\n{indent}"""' if "\n" in kept else '"""')))
    return text.edited(edits)
