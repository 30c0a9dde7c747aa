"""The seam between the service and what it tunes: a method, and a problem to measure it on.

The service knows both only by the protocols below.  A method's values are plain mappings all the
way from the search space to the record of a trial and the exported file.
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

_SHOWN = 100  # most characters of a value in a message
Values = Mapping[str, Any]  # values of a method's fields, as JSON types


class InvalidValuesError(ValueError):
    """A method does not accept these values.  The message names the field and what is allowed."""


class OutOfTimeError(Exception):
    """A call was stopped at its time limit."""


class NotFiniteError(Exception):
    """A loss is not a finite number."""


class CallFailedError(Exception):
    """A method's own code failed on these values.  The exception's notes have its output."""


class ExportError(Exception):
    """The exported file can't be made."""


class ProofError(Exception):
    """The exported file does not reproduce what was measured, or can't be scored."""


@dataclass(frozen=True)
class Field:
    """The description of one of a method's values.

    A "choice" is one of ``choices``, a "subset" a list of some of them, a "text" any string.
    """

    default: Any
    kind: Literal["float", "int", "bool", "choice", "subset", "text"]
    meaning: str = ""
    unit: str = ""  # empty if it has none
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    set_by: str = ""  # key of the study file that sets it; empty: [fixed] or [space]

    def check(self, name: str, value: Any) -> None:
        """Raise InvalidValuesError unless the field, called ``name``, may have this value."""
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
        """Name in attributes and plots; unique among a problem's instances."""

    @property
    def rune(self) -> str:
        """The rune; losses of instances with the same rune are not independent."""

    @property
    def network(self) -> str:
        """Name of the pretrained network that a call starts from."""

    @property
    def speed(self) -> float | None:
        """Factor on the reference machine's speed in calls on this instance; None: the study's."""


class Progress(Protocol):
    """How far a call is, after one of its steps."""

    @property
    def step(self) -> int:
        """Number of finished steps."""

    @property
    def share(self) -> float:
        """Finished share of the schedule, in [0, 1]."""

    @property
    def loss(self) -> float | None:
        """Training loss of this step; None if it is unknown."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the call began."""


OnStep = Callable[[int, Progress], None]  # the integer is the index of the instance


@dataclass(frozen=True)
class Called:
    """The result of a call, with its time and steps."""

    model: Any
    steps: int
    seconds: float
    steps_wanted: int | None = None  # of a schedule that no clock cuts; None: not known
    output: str = ""  # the end of what the method printed


@dataclass(frozen=True)
class Workload:
    """The work in a call, in the units of a machine profile (`hpo.clock`).

    Args:
        startup: amounts of work before the first step, by kind.
        step: amounts of work in one step, by kind.
        steps: number of steps that the values ask for.
        deadline_s: wall-clock seconds after which the call returns, finished or not.
        precision: number format of a step; "auto" is the one that the machine is fastest in.
    """

    startup: Mapping[str, float]
    step: Mapping[str, float]
    steps: int
    deadline_s: float
    precision: str = "auto"


@dataclass(frozen=True)
class Evaluation:
    """The score of a returned model on an instance."""

    loss: float
    standard_error: float
    by_t: tuple[float, ...]  # loss in equal bins of t from 0 to 1; NaN for a bin without any t
    cost: float | None  # CPU time of an answer, relative to the plain network's


@dataclass(frozen=True)
class Claim:
    """A trial's result on an instance, which an export has to reproduce."""

    instance: str  # label of the instance
    loss: float
    standard_error: float
    steps: int
    steps_wanted: int | None = None  # of a schedule that no clock cuts; None: not known


class Method(Protocol):
    """What is tuned.  Constructing one is quick: heavy imports wait for the first call."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """The method's values by name, each with default, kind, bounds, unit and meaning."""

    def complete(self, values: Values) -> dict[str, Any]:
        """Fill in the defaults of all other fields; returns JSON types.

        Raises:
            InvalidValuesError: a field is unknown, a value is not allowed, or values contradict.
        """

    def prepare(self, device: str | None, threads: int) -> None:
        """Make this process ready for calls.

        Args:
            device: "cpu", "cuda" or "cuda:N", as in `hpo.process.devices.choose_device`.
            threads: number of threads that the process may compute with.

        Raises:
            UserError: the device does not exist.
        """

    def count_gpus(self) -> int:
        """Number of GPUs that this process can use."""

    def machine(self) -> dict[str, object]:
        """The properties of machine and software that change a loss in its last bits."""

    def speed(self) -> float | None:
        """Training steps a second of this process, if wall clock ends calls so that losses depend
        on it; else None.  The first query may take tenths of a second."""

    def workload(self, values: Values, instance: Instance) -> Workload | None:
        """The work in a call; None if it is unknown before the call, which then ends by wall clock.

        Args:
            values: complete values.
        """

    def call(
        self,
        values: Values,
        instances: Sequence[Instance],
        on_step: OnStep,
        steps: Sequence[int] | None = None,
    ) -> list[Called]:
        """Make one call for each instance, side by side if that is quicker.

        Args:
            values: complete values.
            on_step: called after each step, or from time to time by a method that does not see its
                steps; an exception that it raises ends the calls.
            steps: number of steps of the call on each instance, however long they take here. The
                result then depends on values, instance and number format alone.  None: calls end
                by wall clock, as in the exported file.

        Raises:
            NotFiniteError: a training loss is not finite.
            CallFailedError: the method's own code failed.
        """

    def fingerprint(self) -> dict[str, str]:
        """The method's entries of a study's manifest: what its losses depend on."""

    def export(self, values: Values, about: str) -> str:
        """Make the text of the file to hand in, which begins with ``about``.

        Raises:
            ExportError: the file can't be made.
        """

    def prove(
        self, file: Path, values: Values, problem: Problem, limit_s: float, claims: Sequence[Claim]
    ) -> Iterator[str]:
        """Run an exported file in a clean interpreter against what trials ran.

        Args:
            limit_s: time limit of a call.
            claims: a trial's results to reproduce; empty if the values are not a trial's.

        Yields:
            A line for people for each thing that is proved.

        Raises:
            ProofError: the file does not reproduce the results.
        """


class Problem(Protocol):
    """What a method is measured on.

    Its method `instances` may take a while, because it reads and checks the data.
    """

    def instances(self, held_out: bool = False) -> Sequence[Instance]:
        """The instances of trials or, with ``held_out``, of confirmations, which no trial sees.

        Raises:
            UserError: data is missing or not usable, or names are unknown.
        """

    def evaluate(
        self, model: Any, instance: Instance, seconds: float, table_seed: int | None = None
    ) -> Evaluation:
        """Score the model that a call on the instance returned.

        Args:
            seconds: time of the call; measuring the model's cost takes a small share of it.
            table_seed: seed of the noise that losses are measured on; None: the study's.

        Raises:
            NotFiniteError: the loss is not finite.
        """

    def picture(self, instance: Instance, model: Any) -> bytes:
        """Draw a PNG that shows the result of a call on the instance."""

    def fingerprint(self) -> dict[str, str]:
        """The problem's entries of a study's manifest: data, networks, instances, estimator."""

    def identity(self, instance: Instance) -> list[str]:
        """What a loss on the instance depends on beside the method and `fingerprint`."""

    def grade(self, loss: float) -> str | None:
        """A mean loss in words of the grading; None if there is no grading."""

    def challenge(self, file: Path, runes: int, passes: int) -> Iterator[str]:
        """Score an exported file on runes that no trial saw.

        Args:
            runes: most runes to score it on.
            passes: passes over the drawings of each rune.

        Yields:
            Lines for people.

        Raises:
            ProofError: the file can't be scored.
        """


def count_looks(instances: Sequence[Instance]) -> int:
    """How many of the first instances are looks: calls at a lower speed than the last instance."""
    if not instances or (target := instances[-1].speed) is None:
        return 0
    return sum(1 for _ in itertools.takewhile(lambda i: (i.speed or 0.0) < target, instances))


def digest_of(values: Values) -> str:
    """A short digest of complete values."""
    return short_digest(json.dumps(dict(values), sort_keys=True))


def short_digest(text: str) -> str:
    """The digest of a text, as twelve hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def changed_values(values: Values, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The values that differ from the defaults."""
    return {name: values[name] for name, f in fields.items() if values[name] != f.default}
