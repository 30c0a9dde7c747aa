"""The document model: sections made of blocks. Renderers decide how each kind of block looks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from .plots import Plot, RowPlot


@dataclass(frozen=True)
class Text:
    """A paragraph; with ``aside`` it is a remark on the block above."""

    kind: ClassVar[str] = "text"
    text: str
    aside: bool = False


@dataclass(frozen=True)
class Facts:
    """Short facts, each with a name."""

    kind: ClassVar[str] = "facts"
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each row is its header."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()  # indices of right-aligned columns


@dataclass(frozen=True)
class Figure:
    """A plot with its caption."""

    kind: ClassVar[str] = "figure"
    plot: Plot | RowPlot
    caption: str


@dataclass(frozen=True)
class Figures:
    """Small figures of one kind, side by side if there is room."""

    kind: ClassVar[str] = "figures"
    name: str  # identifies them within the document
    title: str
    figures: Sequence[Figure]
    caption: str = ""


@dataclass(frozen=True)
class Pair:
    """A figure and the table of its values, side by side if there is room."""

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
    """A picture by its address; in a self-contained page a PNG as a data URI."""

    kind: ClassVar[str] = "picture"
    uri: str
    name: str  # alternative text: what is seen
    width: int | None = None  # pixels
    height: int | None = None


Block = Text | Facts | Table | Figure | Figures | Pair | Code | Picture


@dataclass(frozen=True)
class Section:
    """A chapter; ``anchor`` names it in links within the page."""

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """The story of a study."""

    title: str
    about: str
    lead: Sequence[str]  # paragraphs with the result, for people who read nothing else
    made: str  # when the document was made, and of which study
    sections: Sequence[Section]

    def only(self, anchors: Collection[str]) -> Document:
        """The document with only these sections."""
        return replace(self, sections=[s for s in self.sections if s.anchor in anchors])

    def figures(self) -> Iterator[Figure | Figures]:
        """All figures in their order."""
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Pair):
                    yield block.figure
                elif isinstance(block, Figure | Figures):
                    yield block
