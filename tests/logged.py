"""The cheap method, which writes down each call that it begins and ends."""

from __future__ import annotations

from pathlib import Path

from benchmarks.logged import LOG, Logged, entries

from .cheap import CheapMethod

__all__ = ["LOG", "LoggedMethod", "calls_in"]


class LoggedMethod(Logged, CheapMethod):
    """Its calls are those of the cheap method."""


def calls_in(log: Path, what: str = "begin") -> list[tuple[str, str]]:
    """The calls that were begun (or ended), by recipe and instance, in their order."""
    return [(entry.recipe, entry.instance) for entry in entries(log) if entry.what == what]
