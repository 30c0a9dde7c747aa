"""What a page is made of; the template knows how each kind looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Text:
    """A paragraph; ``aside``: a remark on what is above it."""

    kind: ClassVar[str] = "text"
    text: str
    aside: bool = False


@dataclass(frozen=True)
class Facts:
    """Short answers, each under its name."""

    kind: ClassVar[str] = "facts"
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of text, the first of each its header."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()  # columns that are aligned at their right


@dataclass(frozen=True)
class Figure:
    """A drawing with its name inside, and words for under it."""

    kind: ClassVar[str] = "figure"
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Figures:
    """Small figures, beside each other where there is room."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Pair:
    """A figure and the table of its values, beside each other where there is room."""

    kind: ClassVar[str] = "pair"
    figure: Figure
    table: Table


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    kind: ClassVar[str] = "code"
    label: str
    text: str


@dataclass(frozen=True)
class Picture:
    """A PNG as a data URI."""

    kind: ClassVar[str] = "picture"
    uri: str
    name: str  # says what is seen
    width: int  # pixels
    height: int


Block = Text | Facts | Table | Figure | Figures | Pair | Code | Picture


@dataclass(frozen=True)
class Section:
    """A chapter; ``anchor`` names it in links within the page."""

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Story:
    """The page."""

    title: str
    about: str
    lead: Sequence[str]  # paragraphs: what came out, for who reads nothing else
    made: str  # when, and of what
    sections: Sequence[Section]
