"""Inline SVG with a few kinds of marks and an accessible name.

Colours come from the page's style sheet by class, so that a drawing follows light, dark and print.
Style attributes are not used, because the page's security policy forbids them.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

from markupsafe import Markup

from ..sanitize import plain

Point = tuple[float, float]
_NARROW = 0.55  # mean width of a character, as a share of the font's size
FONT_PX = 12


class Drawing:
    """Marks in pixels of a box of ``width`` by ``height``, from its upper left corner.

    Args:
        name: identifier of the figure, unique in the page.
        title: accessible name.
        description: what the figure shows, for people who can't see it.
    """

    def __init__(self, name: str, title: str, description: str, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._root = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {width} {height}",
                "role": "img",
                "aria-labelledby": f"{name}-title {name}-desc",
            },
        )
        for tag, said in (("title", title), ("desc", description)):
            element = ElementTree.SubElement(self._root, tag, {"id": f"{name}-{tag}"})
            element.text = plain(said, 2000)

    def line(self, start: Point, end: Point, kind: str) -> None:
        self._add("path", kind, d=f"M{_at(start)}L{_at(end)}")

    def path(self, points: Iterable[Point], kind: str) -> None:
        """Straight lines from point to point."""
        d = "L".join(_at(p) for p in points)
        if d:
            self._add("path", kind, d=f"M{d}")

    def dots(self, points: Iterable[Point], kind: str) -> None:
        """Round dots, all in one element; dots at the same place are drawn once."""
        # A line of (almost) no length with round ends is a dot; some browsers need a little length.
        d = "".join(f"M{_at(p)}h.01" for p in dict.fromkeys((_r(x), _r(y)) for x, y in points))
        if d:
            self._add("path", f"dots {kind}", d=d)

    def rectangle(self, corner: Point, width: float, height: float, kind: str) -> None:
        x, y = corner
        size = {"width": f"{max(0.0, width):g}", "height": f"{max(0.0, height):g}"}
        self._add("rect", kind, x=f"{_r(x):g}", y=f"{_r(y):g}", **size)

    def circle(self, centre: Point, radius: float, kind: str) -> None:
        x, y = centre
        self._add("circle", kind, cx=f"{_r(x):g}", cy=f"{_r(y):g}", r=f"{radius:g}")

    def diamond(self, centre: Point, radius: float, kind: str) -> None:
        x, y, r = _r(centre[0]), _r(centre[1]), radius
        self._add("path", kind, d=f"M{x - r:g} {y:g}l{r:g} {-r:g} {r:g} {r:g} {-r:g} {r:g}z")

    def text(
        self, place: Point, words: object, kind: str = "", anchor: str = "start", room: float = 0
    ) -> None:
        """Words at a place, which is their start, middle or end by ``anchor``.

        Words longer than ``room`` pixels are cut.
        """
        most = int(room / (_NARROW * FONT_PX)) if room else 200
        x, y = place
        attributes = {"x": f"{_r(x):g}", "y": f"{_r(y):g}"}
        if anchor != "start":
            attributes["text-anchor"] = anchor
        self._add("text", kind, **attributes).text = plain(words, max(2, most)).replace("\n", " ")

    def markup(self) -> Markup:
        """The element, for a page of HTML."""
        return Markup(ElementTree.tostring(self._root, encoding="unicode"))

    def _add(self, tag: str, kind: str, **attributes: str) -> ElementTree.Element:
        found = {"class": kind, **attributes} if kind else attributes
        return ElementTree.SubElement(self._root, tag, found)


def text_width(words: str) -> float:
    """The approximate width of words in pixels."""
    return len(words) * _NARROW * FONT_PX


def _at(point: Point) -> str:
    return f"{_r(point[0]):g} {_r(point[1]):g}"


def _r(pixels: float) -> float:
    # Tenths are finer than anyone sees, and shorter.
    return round(pixels, 1)
