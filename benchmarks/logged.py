"""A method that writes down each call that it begins and ends, and which process makes it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.problem.base import Called, Instance, Values, digest_of

LOG = "CALLS_LOG"  # variable that names the file


@dataclass(frozen=True)
class Entry:
    """A line of the log."""

    what: str  # "begin" or "end"
    pid: int
    at_s: float  # since the epoch
    recipe: str  # digest
    instance: str  # label


class Logged:
    """To be named before the method whose calls it writes down, as a base of the same class."""

    def call(
        self, values: Values, instances: Sequence[Instance], *more: Any, **named: Any
    ) -> list[Called]:
        _write("begin", values, instances)
        called: list[Called] = super().call(  # type: ignore[misc]
            values, instances, *more, **named
        )
        _write("end", values, instances)
        return called


def _write(what: str, values: Values, instances: Sequence[Instance]) -> None:
    begin = f"{what} {os.getpid()} {time.time()} {digest_of(values)}"
    file = os.open(os.environ[LOG], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    try:
        os.write(file, "".join(f"{begin} {i.label}\n" for i in instances).encode())  # in one piece
    finally:
        os.close(file)


def entries(log: Path) -> Iterator[Entry]:
    """What was written, in its order; nothing if there is no file."""
    if log.exists():
        for line in log.read_text().splitlines():
            what, pid, at_s, recipe, instance = line.split(maxsplit=4)
            yield Entry(what, int(pid), float(at_s), recipe, instance)
