"""Edit source text at places of its syntax tree; comments and layout stay."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import NamedTuple


class Edit(NamedTuple):
    """Bytes ``start`` to ``end`` become ``text``."""

    start: int
    end: int
    text: str


class Text:
    """Source text whose first line is line ``first_line`` of its syntax tree."""

    def __init__(self, source: str, first_line: int = 1) -> None:
        self._raw = source.encode()
        self._first_line = first_line
        self._starts = [0]
        for line in self._raw.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def at(self, line: int, column: int) -> int:
        """The offset of a place; columns count bytes, as in a syntax tree."""
        return self._starts[line - self._first_line] + column

    def span(self, node: ast.expr | ast.stmt | ast.arg | ast.keyword) -> tuple[int, int]:
        """Where a node begins and ends."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def slice(self, start: int, end: int) -> str:
        return self._raw[start:end].decode()

    def edited(self, edits: Iterable[Edit], start: int = 0, end: int | None = None) -> str:
        """The text between two places after edits, which must not overlap."""
        parts, done = [], start
        for edit in sorted(edits):
            parts += [self.slice(done, edit.start), edit.text]
            done = edit.end
        parts.append(self.slice(done, len(self._raw) if end is None else end))
        return "".join(parts)
