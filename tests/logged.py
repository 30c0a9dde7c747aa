"""The cheap method, which writes down each call that it begins and ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpo.problem.base import Called, Instance, Values, digest_of

from .cheap import CheapMethod

LOG = "CALLS_LOG"  # variable that names the file


class LoggedMethod(CheapMethod):
    """Each line is ``begin`` or ``end``, the recipe's digest and the instance's label."""

    def call(
        self, values: Values, instances: Sequence[Instance], *more: Any, **named: Any
    ) -> list[Called]:
        self._write("begin", values, instances)
        called = super().call(values, instances, *more, **named)
        self._write("end", values, instances)
        return called

    @staticmethod
    def _write(what: str, values: Values, instances: Sequence[Instance]) -> None:
        lines = [f"{what} {digest_of(values)} {i.label}\n" for i in instances]
        file = os.open(os.environ[LOG], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        try:
            os.write(file, "".join(lines).encode())  # in one piece
        finally:
            os.close(file)


def calls_in(log: Path, what: str = "begin") -> list[tuple[str, str]]:
    """The calls that were begun (or ended), by recipe and instance, in their order."""
    if not log.exists():
        return []
    lines = (line.split(maxsplit=2) for line in log.read_text().splitlines())
    return [(recipe, label) for kind, recipe, label in lines if kind == what]
