"""Text for a terminal."""


def printable(text: str) -> str:
    """Text without control characters, so that text from a database can't control a terminal."""
    return "".join(c if c == "\n" or c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
