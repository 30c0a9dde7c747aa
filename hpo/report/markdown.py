"""Render a document as Markdown for the dashboard's note, or as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from .document import Block, Code, Document, Facts, Pair, Picture, Section, Table, Text
from .sanitize import plain

_LONGEST_TEXT, _LONGEST_CODE = 2_000, 20_000  # characters
_WIDTH = 100  # characters of a line of text on a terminal
_ROW_WIDTH, _CELL_WIDTH = 120, 28  # characters of a table's row, and of its cells but the last
_ESCAPED = str.maketrans({c: f"\\{c}" for c in "\\|`*_[]<>!#~$"})


def to_markdown(document: Document) -> str:
    """A note in Markdown. Figures are left out, because the dashboard shows them as plots."""
    parts = [
        f"# {escape(document.title)}",
        escape(document.about),
        *map(escape, document.lead),
        *(section_markdown(section) for section in document.sections),
        f"*Written {escape(document.made)}.*",
    ]
    return "\n\n".join(part for part in parts if part)


def section_markdown(section: Section) -> str:
    """A section with its heading."""
    parts = (part for block in section.blocks for part in _parts(block))
    return "\n\n".join([f"## {escape(section.title)}", *parts])


def to_terminal(document: Document) -> str:
    """Plain text: nothing is escaped, and tables are aligned."""
    lines = [plain(document.title)]
    for text in document.lead:
        lines += _wrapped(text)
    for section in document.sections:
        lines += ["", f"{plain(section.title)}:"]
        for block in section.blocks:
            lines += _lines(block)
    return "\n".join(lines)


def escape(text: object) -> str:
    """Text of unknown origin on one line, with Markdown's special characters escaped."""
    return " ".join(plain(text, _LONGEST_TEXT).split()).translate(_ESCAPED)


def _parts(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        text = escape(block.text)
        yield f"*{text}*" if block.aside else text
    elif isinstance(block, Facts):
        yield "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in block.items)
    elif isinstance(block, Table):
        yield f"{escape(block.caption)}:"
        yield _table(block)
    elif isinstance(block, Pair):
        yield from _parts(block.table)
    elif isinstance(block, Code):
        text = plain(block.text, _LONGEST_CODE)
        fence = "```"
        while fence in text:
            fence += "`"
        yield escape(block.label)
        yield f"{fence}\n{text}\n{fence}"
    elif isinstance(block, Picture):
        yield f"![{escape(block.name)}]({block.uri})"


def _table(block: Table) -> str:
    rule = ["---:" if i in block.numbers else "---" for i in range(len(block.columns))]
    rows = [block.columns, *block.rows]
    head, *body = [f"| {' | '.join(map(escape, row))} |" for row in rows]
    return "\n".join([head, f"| {' | '.join(rule)} |", *body])


def _lines(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield from _wrapped(block.text, "  ")
    elif isinstance(block, Facts):
        yield from (f"  {plain(name)}: {plain(value)}" for name, value in block.items)
    elif isinstance(block, Table):
        yield from _wrapped(f"{block.caption}:", "  ")
        yield from _aligned(block)
    elif isinstance(block, Pair):
        yield from _lines(block.table)
    elif isinstance(block, Code):
        yield from _wrapped(block.label, "  ")
        yield from (f"    {plain(line)}" for line in block.text.splitlines())


def _aligned(block: Table) -> Iterator[str]:
    rows = [
        [*(_cell(one, _CELL_WIDTH) for one in row[:-1]), _cell(row[-1], _ROW_WIDTH)]
        for row in (block.columns, *block.rows)
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(block.columns))]
    for row in rows:
        cells = (
            cell.rjust(width) if i in block.numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield plain(f"    {'  '.join(cells)}".rstrip(), _ROW_WIDTH)


def _cell(text: str, most: int) -> str:
    return plain(" ".join(text.split()), most)


def _wrapped(text: str, indent: str = "") -> list[str]:
    words = plain(text, _LONGEST_TEXT)
    return textwrap.wrap(words, _WIDTH, initial_indent=indent, subsequent_indent=indent)
