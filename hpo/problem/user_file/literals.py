"""Values written in a Python file: find their places, and replace them."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

# Only a comment behind the last value of a line: behind several values it could mean any of them.
_COMMENT = re.compile(r"[\s,):]*#+([^\r\n]*)")
_MARK = "\ufeff"
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n|$)")


@dataclass(frozen=True)
class Place:
    """The place of a value in a file: byte offsets into its UTF-8 text."""

    start: int
    end: int


class Source:
    """The text of a Python file, and its syntax tree.

    Raises:
        SyntaxError: the text is not Python.
        ValueError: the text has a null character.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.tree = ast.parse(text.removeprefix(_MARK))
        self._bytes = text.encode()
        # `ast` gives lines, and columns in bytes, without a byte order mark.
        self._mark = len(_MARK.encode()) if text.startswith(_MARK) else 0
        self._lines = [match.start() for match in _LINE.finditer(self._bytes)]

    def place(self, node: ast.expr) -> Place:
        """The place of an expression."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return Place(
            self._offset(node.lineno, node.col_offset),
            self._offset(node.end_lineno, node.end_col_offset),
        )

    def written(self, place: Place) -> str:
        """The text at a place."""
        return self._bytes[place.start : place.end].decode()

    def comment_behind(self, place: Place) -> str:
        """The comment on the line of a place; empty if there is none."""
        end = next((start for start in self._lines if start > place.end), len(self._bytes))
        found = _COMMENT.match(self._bytes[place.end : end].decode())
        return found[1].strip() if found else ""

    def with_values(self, values: Mapping[Place, Any]) -> str:
        """The text with other values in these places; nothing else changes."""
        parts, done = [], 0
        for place in sorted(values, key=lambda place: place.start):
            parts.append(self._bytes[done : place.start])
            parts.append(written_as(values[place], self.written(place)).encode())
            done = place.end
        return b"".join([*parts, self._bytes[done:]]).decode()

    def around(self, places: Collection[Place]) -> list[str]:
        """The parts of the text before, between and after these places."""
        ordered = sorted(places, key=lambda place: place.start)
        starts = [0, *(place.end for place in ordered)]
        ends = [*(place.start for place in ordered), len(self._bytes)]
        return [self._bytes[a:b].decode() for a, b in zip(starts, ends, strict=True)]

    def _offset(self, line: int, column: int) -> int:
        return self._lines[line - 1] + column + (self._mark if line == 1 else 0)


def literal(node: ast.expr | None) -> bool | int | float | str | None:
    """The value of an expression if it is a plain number, string or boolean; else None."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = literal(node.operand)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
        return None
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str)):
        return node.value if node.value != math.inf else None
    return None


def written_as(value: bool | int | float | str, before: str) -> str:
    """A value as Python source, with the same quotes as in ``before``."""
    if isinstance(value, str) and before.startswith('"') and not set(value) & {'"', "\\"}:
        return f'"{value}"' if value.isprintable() else repr(value)
    return repr(value)
