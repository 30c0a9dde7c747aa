"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column of names and the others of numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def cell(text: object) -> str:
    """Text of unknown origin on one line, without what Markdown would make something else of."""
    words = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\|`*_[]<>!#~$" else c for c in words)


def shown(value: Any) -> str:
    """A recipe's value."""
    if isinstance(value, (list, tuple)):
        return cell(", ".join(map(str, value)) or "none")
    return f"{value:.4g}" if isinstance(value, float) else cell(value)


def counted(n: int, thing: str) -> str:
    """So many of something."""
    return f"{n} {thing}{'' if n == 1 else 's'}"
