"""Clean text of unknown origin before it is shown; templates do the escaping."""

from __future__ import annotations

import unicodedata

LONGEST = 300  # characters of any text but code
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Lone surrogates, control characters, and marks that reorder the text around them.
_UNFIT = {"Cs", "Cc"}
_REORDERING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain(value: object, longest: int = LONGEST) -> str:
    """``value`` as text without characters that no page may have, cut if it is longer.

    Line breaks and tabs stay; other control characters, lone surrogates and marks that change the
    direction of text become U+FFFD.
    """
    text = value if isinstance(value, str) else str(value)
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_REPLACEMENT if _is_unfit(c) else c for c in text)


def _is_unfit(character: str) -> bool:
    if character in "\n\t":
        return False
    if character in _REORDERING or unicodedata.category(character) in _UNFIT:
        return True
    return ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF  # noncharacters
