"""Machine profiles: how many seconds each kind of work takes on a machine.

The time of a call is modelled as

    seconds = sum over k of startup_k s_k  +  steps * sum over k of step_k w_k

with the amounts s_k and w_k of work in the call (`hpo.problem.base.Workload`) and the seconds of a
unit, which are the profile's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..errors import UserError
from ..problem.base import Workload, short_digest
from ..settings import Table, TableError, find_file, read_file

MACHINES_DIR = Path("studies") / "machines"

Seconds = Annotated[float, Field(ge=0)]


class NotTimedError(Exception):
    """The profile has no times for a call of these values.  The message says why."""


class Check(Table):
    """Relative errors of predictions, on recipes that the model was not fitted to."""

    recipes: int
    step_median_error: float  # of the seconds of one step
    step_largest_error: float
    startup_median_error: float  # of the seconds before the first step
    startup_largest_error: float


class Profile(Table):
    """Seconds that a unit of each kind of work takes, before the first step and in each step."""

    about: str = ""
    machine: dict[str, str]  # description, for people to read
    method: str  # name, in study files, of the method that was timed
    precision: str  # number format that the method computed in
    startup: dict[str, Seconds]
    step: dict[str, Seconds]
    check: Check | None = None

    @property
    def digest(self) -> str:
        """Digest of the coefficients: profiles with equal digests predict the same."""
        return short_digest(json.dumps([self.method, self.precision, self.startup, self.step]))

    def startup_s(self, work: Workload) -> float:
        """Seconds before the first step.

        Raises:
            NotTimedError: the profile does not know this kind of work.
        """
        if work.precision not in ("auto", self.precision):
            raise NotTimedError(
                f"precision {work.precision} was not timed, {self.precision} was; write auto"
            )
        return _seconds(work.startup, self.startup)

    def step_s(self, work: Workload) -> float:
        """Seconds of a step.

        Raises:
            NotTimedError: the profile does not know this kind of work.
        """
        return _seconds(work.step, self.step)

    def to_toml(self) -> str:
        """Inverse of `load_profile`."""
        tables: dict[str, Mapping[str, object]] = {
            "machine": self.machine,
            "startup": self.startup,
            "step": self.step,
        }
        if self.check is not None:
            tables["check"] = self.check.model_dump()
        lines = [f"{key} = {json.dumps(getattr(self, key))}" for key in _PLAIN]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(_line(key, value) for key, value in table.items())]
        return "\n".join(lines) + "\n"


_PLAIN = ("about", "method", "precision")


def load_profile(machine: str) -> Profile:
    """Read a machine's profile, by its path or by its name in ``studies/machines/``.

    Raises:
        UserError: the file is not there or is no profile; the message says what is wrong.
    """
    path = find_file(machine, MACHINES_DIR, "machine", "a machine profile", ("wall",))
    try:
        return read_file(path, Profile)
    except TableError as error:
        raise UserError(
            f"{path} is no machine profile: {error}; make one by python -m hpo.calibrate"
        ) from error


def _seconds(amounts: Mapping[str, float], units: Mapping[str, float]) -> float:
    unknown = [name for name in amounts if name not in units]
    if unknown:
        raise NotTimedError(f"the profile has no time for {unknown[0]!r}; calibrate again")
    return sum(amount * units[name] for name, amount in amounts.items())


def _line(key: str, value: object) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return f"{json.dumps(key, ensure_ascii=False) if ' ' in key else key} = {text}"
