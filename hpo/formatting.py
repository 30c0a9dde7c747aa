"""Numbers and values as commands print them."""

from __future__ import annotations

from typing import Any


def counted(n: int, thing: str) -> str:
    """A number of things: ``1 trial``, ``2 trials``."""
    return f"{n} {thing}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds in the largest unit that gives at least 2, such as ``3.5 min``."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def setting(value: Any) -> str:
    """A value of a recipe or of a parameter; lists are joined by plus signs."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cost_of_answer(cost: float | None) -> str:
    """CPU time of an evaluation, relative to the plain network's; empty if unknown."""
    return "" if cost is None else f"{cost:.2g} of the plain network's"


def with_error(value: float | None, error: float | None, sign: str = "") -> str:
    """A loss with its standard error; empty if unknown.

    Args:
        sign: ``+`` for a difference, which then always has a sign.
    """
    if value is None:
        return ""
    known = error is not None and error == error
    return f"{value:{sign}.4f}" + (f" ± {error:.4f}" if known else "")
