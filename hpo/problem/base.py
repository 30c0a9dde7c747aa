"""The seam between the service and what it tunes: a method, and a problem to measure it on.

The service knows both by the protocols below.  A method's values travel through it as plain
mappings, from the search space to the record of a trial and to the exported file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

_SHOWN = 100  # characters of a value in a message
Values = Mapping[str, Any]  # of a method's fields, as JSON has them


class InvalidValuesError(ValueError):
    """A method does not take these values.  The message names the field and what is allowed."""


class OutOfTimeError(Exception):
    """A call was stopped at its limit."""


class NotFiniteError(Exception):
    """A loss is not a finite number."""


class CallFailedError(Exception):
    """A method's own code failed on these values.  Its notes hold what it said."""


class ExportError(Exception):
    """The file to hand in can't be made."""


class ProofError(Exception):
    """The file to hand in does not do what was measured, or can't be scored."""


@dataclass(frozen=True)
class Field:
    """A value of a method.

    A "choice" is one of ``choices``, a "subset" a list of some of them, a "text" any string.
    """

    default: Any
    kind: Literal["float", "int", "bool", "choice", "subset", "text"]
    meaning: str = ""
    unit: str = ""  # empty: a plain number, or none
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    set_by: str = ""  # key of a study file that sets it; empty: [fixed] or [space]

    def check(self, name: str, value: Any) -> None:
        """Raises InvalidValuesError unless the field called ``name`` may have this value."""
        if not self._allows(value):
            found = repr(value)
            found = found if len(found) <= _SHOWN else f"{found[:_SHOWN]}..."
            raise InvalidValuesError(f"{name} is {found}; write {self._allowed(value)}")

    def _allows(self, value: Any) -> bool:
        if self.kind == "text":
            return isinstance(value, str)
        if self.kind == "choice":
            return value in self.choices
        if self.kind == "subset":
            return isinstance(value, (list, tuple)) and all(v in self.choices for v in value)
        if self.kind == "bool" or isinstance(value, bool):
            return self.kind == "bool" and isinstance(value, bool)
        return self._is_number(value) and self.low <= value <= self.high

    def _is_number(self, value: Any) -> bool:
        number = isinstance(value, (int, float)) and -math.inf < value < math.inf
        return number and (self.kind == "float" or value == int(value))

    def _allowed(self, value: Any) -> str:
        if self.kind in ("choice", "subset"):
            choices = ", ".join(self.choices)
            return f"one of {choices}" if self.kind == "choice" else f"a list of some of {choices}"
        if self.kind == "bool":
            return "true or false"
        if self.kind == "text":
            return "a string"
        what = "a whole number" if self.kind == "int" else "a number"
        if not isinstance(value, bool) and self._is_number(value):
            what = "a value"
        bounded = (self.low, self.high) != (-math.inf, math.inf)
        return f"{what} in [{self.low:g}, {self.high:g}]" if bounded else what


class Instance(Protocol):
    """What one call is measured on."""

    @property
    def label(self) -> str:
        """Its name in attributes and plots; unique among a problem's instances."""

    @property
    def rune(self) -> str:
        """What it shares with other instances, whose losses are then not independent of its."""

    @property
    def network(self) -> str:
        """Name of what a call starts from."""

    @property
    def speed(self) -> float | None:
        """Of the reference machine, over its own, in a call on this; None: the study's."""


class Progress(Protocol):
    """How far a call is, after one of its steps."""

    @property
    def step(self) -> int:
        """Steps that are done."""

    @property
    def share(self) -> float:
        """Of the schedule, in [0, 1]."""

    @property
    def loss(self) -> float | None:
        """The training loss of this step; None: it is not told."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the call began."""


OnStep = Callable[[int, Progress], None]  # is told which of the call's instances made the step


@dataclass(frozen=True)
class Called:
    """What a call returned, and what it took."""

    model: Any
    steps: int
    seconds: float
    steps_wanted: int | None = None  # of a schedule that no clock cuts; None: not known
    output: str = ""  # the end of what the method printed


@dataclass(frozen=True)
class Workload:
    """What a call has to do, in units for which a machine profile has seconds (`hpo.clock`).

    Args:
        startup: amounts of work before the first step, by their names.
        step: amounts of work of one step.
        steps: that the values ask for.
        deadline_s: wall-clock seconds after which the call returns, whatever it has done.
        precision: number format of a step, "auto": what the machine is fastest in.
    """

    startup: Mapping[str, float]
    step: Mapping[str, float]
    steps: int
    deadline_s: float
    precision: str = "auto"


@dataclass(frozen=True)
class Evaluation:
    """What a returned model is worth on an instance."""

    loss: float
    standard_error: float
    by_t: tuple[float, ...]  # loss in equal bins of t from 0 to 1; NaN: no time fell into the bin
    cost: float | None  # CPU time of an answer, over the plain network's


@dataclass(frozen=True)
class Claim:
    """What a trial measured on an instance."""

    instance: str  # its label
    loss: float
    standard_error: float
    steps: int
    steps_wanted: int | None = None  # of a schedule that no clock cuts; None: not known


class Method(Protocol):
    """What is tuned.  Making one is quick: it imports what it computes with when it is called."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """By name, each with its default, kind, bounds, unit and meaning."""

    def complete(self, values: Values) -> dict[str, Any]:
        """These values and the defaults of all other fields, as JSON has them.

        Raises:
            InvalidValuesError: a field is unknown, or values are not allowed or contradict.
        """

    def prepare(self, device: str | None, threads: int) -> None:
        """Make this process ready for calls.

        Args:
            device: "cpu", "cuda" or "cuda:N", as `hpo.process.devices.choose_device` took it.
            threads: that the process may compute with.

        Raises:
            UserError: the device is not there.
        """

    def count_gpus(self) -> int:
        """GPUs that this process can use."""

    def machine(self) -> dict[str, object]:
        """What losses depend on beside the values, to the last bit."""

    def speed(self) -> float | None:
        """Training steps a second of this process, where a call's loss depends on them, because
        wall clock ends it; None: it does not.  May take tenths of a second once."""

    def workload(self, values: Values, instance: Instance) -> Workload | None:
        """What a call has to do; None: not known before it ran, so wall clock has to rule it.

        Args:
            values: complete.
        """

    def call(
        self,
        values: Values,
        instances: Sequence[Instance],
        on_step: OnStep,
        steps: Sequence[int] | None = None,
    ) -> list[Called]:
        """One call for each instance, side by side where that is quicker.

        Args:
            values: complete.
            on_step: called after each step, and now and then by a method that does not see its
                steps; what it raises ends the calls.
            steps: that the call on each instance makes, however long that takes here: what comes
                of it then depends on values, instance and number format alone.  None: wall clock
                rules, as in the file to hand in.

        Raises:
            NotFiniteError: a training loss is not finite.
            CallFailedError: the method's own code failed.
        """

    def fingerprint(self) -> dict[str, str]:
        """Entries of a study's manifest: what tells this method's losses from another's."""

    def export(self, values: Values, about: str) -> str:
        """The text of the file to hand in, which begins with ``about``.

        Raises:
            ExportError: it can't be made.
        """

    def prove(
        self, file: Path, values: Values, problem: Problem, limit_s: float, claims: Sequence[Claim]
    ) -> Iterator[str]:
        """Run an exported file in a clean interpreter against what trials ran.

        Args:
            limit_s: seconds that a call may take.
            claims: what a trial measured; empty: the values are of no trial.

        Yields:
            A line for people for each thing that is proved.

        Raises:
            ProofError: the file does something else.
        """


class Problem(Protocol):
    """What a method is measured on.

    Its method `instances` may take a while: data is read and checked there.
    """

    def instances(self, held_out: bool = False) -> Sequence[Instance]:
        """What trials are measured on; ``held_out``: what confirmations are, and no trial was.

        Raises:
            UserError: data is missing or not usable, or names are unknown.
        """

    def evaluate(
        self, model: Any, instance: Instance, seconds: float, table_seed: int | None = None
    ) -> Evaluation:
        """Score what a call on the instance returned.

        Args:
            seconds: that the call took; evaluating its cost takes a small share of that.
            table_seed: of the noise on which losses are measured; None: the study's.

        Raises:
            NotFiniteError: the loss is not finite.
        """

    def picture(self, instance: Instance, model: Any) -> bytes:
        """A PNG that shows what the call on the instance made."""

    def fingerprint(self) -> dict[str, str]:
        """Entries of a study's manifest: data, networks, instances, estimator."""

    def identity(self, instance: Instance) -> list[str]:
        """What a loss on the instance depends on beside the method and `fingerprint`."""

    def grade(self, loss: float) -> str | None:
        """What a mean loss is worth, in words; None where nobody grades it."""

    def challenge(self, file: Path, runes: int, passes: int) -> Iterator[str]:
        """Score an exported file on what no trial saw.

        Args:
            runes: to score it on, at most.
            passes: over the drawings of each.

        Yields:
            Lines for people.

        Raises:
            ProofError: the file can't be scored.
        """


def count_looks(instances: Sequence[Instance]) -> int:
    """How many of the instances, the first ones, are looks: at a lower speed than the last one."""
    if not instances or (target := instances[-1].speed) is None:
        return 0
    return sum(1 for _ in itertools.takewhile(lambda i: (i.speed or 0.0) < target, instances))


def digest_of(values: Values) -> str:
    """A short digest that names complete values: equal for equal values alone."""
    return short_digest(json.dumps(dict(values), sort_keys=True))


def short_digest(text: str) -> str:
    """Twelve hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def changed_values(values: Values, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Those of complete values that are not the defaults."""
    return {name: values[name] for name, f in fields.items() if values[name] != f.default}
