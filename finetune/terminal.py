"""Text for a terminal."""


def printable(text: str) -> str:
    """Text without control characters: what a database holds must not steer a terminal."""
    return "".join(c if c == "\n" or c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
