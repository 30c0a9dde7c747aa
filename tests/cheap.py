"""A method and a problem without torch, for tests of the service: milliseconds a call.

A study file names them by ``[method] name = "tests.cheap:CheapMethod"`` and ``[problem] name =
"tests.cheap:CheapProblem"``; its tables ``[instances]``, ``[estimator]`` and ``[confirm]`` mean
what they mean for runes, except that any rune is known.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hpo.problem.base import (
    Called,
    Claim,
    Evaluation,
    Field,
    Instance,
    InvalidValuesError,
    NotFiniteError,
    OnStep,
    Problem,
    ProofError,
    Values,
    Workload,
)
from hpo.problem.settings import Confirm, Estimator, Instances

CHEAP = {
    "method": {"name": "tests.cheap:CheapMethod"},
    "problem": {"name": "tests.cheap:CheapProblem"},
}
# As tables of a study file.
CHEAP_TOML = "".join(f'[{table}]\nname = "{names["name"]}"\n' for table, names in CHEAP.items())
PICTURE = (  # a PNG of one black pixel
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU"
    b"\x00\x00\x00\nIDATx\x9cc`\x00\x00\x00\x02\x00\x01H\xaf\xa4q\x00\x00\x00\x00IEND\xaeB`\x82"
)
_BEST_LR = 0.01


@dataclass(frozen=True)
class CheapInstance:
    """A name; the seeds count."""

    rune: str
    split: int
    seed: int
    network: str = "none"
    resize: str = ""
    speed: float | None = None

    @property
    def label(self) -> str:
        return self.place + ("" if self.speed is None else f"*{self.speed:g}") + self.resize

    @property
    def place(self) -> str:
        return f"{self.rune}/{self.split}" + (f"/{self.seed}" if self.seed else "")


@dataclass(frozen=True)
class CheapProgress:
    """See `hpo.problem.base.Progress`."""

    step: int
    share: float
    loss: float
    elapsed_s: float


# Of values and an instance: the level that the loss grows with, and the seconds of the call.
Behaviour = Callable[[dict[str, Any], CheapInstance], tuple[float, float]]


def _behave(values: dict[str, Any], instance: CheapInstance) -> tuple[float, float]:
    level = abs(math.log10(values["lr"] / _BEST_LR)) / 4 + (0.1 if values["square"] else 0.0)
    return level, 1.0


class CheapMethod:
    """A learning rate that is best at 0.01, and fields of every kind."""

    behave: ClassVar[Behaviour] = staticmethod(_behave)  # tests put others here
    fields: ClassVar[Mapping[str, Field]] = {
        "lr": Field(4e-3, "float", "learning rate", low=1e-7, high=1.0),
        "steps": Field(2, "int", "steps of a call", "steps", 1, 1_000),
        "step_s": Field(0.0, "float", "real seconds of a step", "s", 0.0, 60.0),
        "square": Field(False, "bool", "makes losses higher"),
        "shape": Field("pen", "choice", "without effect", choices=("pen", "direct")),
        "parts": Field(["a", "b"], "subset", "without effect", choices=("a", "b", "c")),
    }

    def complete(self, values: Values) -> dict[str, Any]:
        for name, value in values.items():
            if name not in self.fields:
                raise InvalidValuesError(f"unknown field {name!r}")
            self.fields[name].check(name, value)
        whole = {name: values.get(name, f.default) for name, f in self.fields.items()}
        if not whole["parts"]:
            raise InvalidValuesError("parts is empty; name some of a, b, c")
        return whole

    def prepare(self, device: str | None, threads: int) -> None:
        pass

    def count_gpus(self) -> int:
        return 0

    def machine(self) -> dict[str, object]:
        return {"device": "cpu", "threads": 1}

    def speed(self) -> float | None:
        return None

    def workload(self, values: Values, instance: Instance) -> Workload | None:
        return Workload({"call": 1}, {"step": 1}, values["steps"], deadline_s=10.0)

    def call(
        self,
        values: Values,
        instances: Sequence[Instance],
        on_step: OnStep,
        steps: Sequence[int] | None = None,
    ) -> list[Called]:
        called = []
        for index, instance in enumerate(instances):
            assert isinstance(instance, CheapInstance)
            level, seconds = type(self).behave(dict(values), instance)
            n = wanted = values["steps"]
            if steps is not None:  # a shorter schedule ends at a higher loss
                n = steps[index]
                level += (wanted - n) / wanted
            for step in range(1, n + 1):
                time.sleep(values["step_s"])
                on_step(index, CheapProgress(step, step / n, 1 + level / step, seconds))
            called.append(Called(level, n, seconds, wanted if steps is None else n))
        return called

    def fingerprint(self) -> dict[str, str]:
        return {"code": "cheap"}

    def export(self, values: Values, about: str) -> str:
        return f"# {about}\nVALUES = {dict(values)!r}\n"

    def prove(
        self, file: Path, values: Values, problem: Problem, limit_s: float, claims: Sequence[Claim]
    ) -> Iterator[str]:
        if repr(dict(values)) not in file.read_text():
            raise ProofError("the file has other values")
        yield "the values are the trial's"


class CheapProblem:
    """Losses by a formula, with noise by the instance and the table's seed."""

    def __init__(
        self, asked: Instances, estimator: Estimator, confirm: Confirm, data: Path | None
    ) -> None:
        self._asked, self._estimator, self._confirm = asked, estimator, confirm

    def instances(self, held_out: bool = False) -> Sequence[CheapInstance]:
        if not held_out:
            asked = self._asked
            runes, speeds = asked.runes or ("r0", "r1", "r2"), asked.speeds or (None,)
            of_each = itertools.product(speeds, asked.seeds, asked.splits, runes)
            return [
                CheapInstance(rune, split, seed, speed=speed)
                for speed, seed, split, rune in of_each
            ]
        confirm = self._confirm
        splits, seeds = confirm.splits or (0,), confirm.seeds or (0,)
        runes = confirm.runes or ("h0", "h1", "h2")
        of = itertools.product(seeds, splits, runes)
        return [CheapInstance(r, split, seed, resize=" bilinear") for seed, split, r in of]

    def evaluate(
        self, model: float, instance: Instance, seconds: float, table_seed: int | None = None
    ) -> Evaluation:
        assert isinstance(instance, CheapInstance)
        loss = (1 + model**2) * self._difficulty(instance, table_seed)
        if not math.isfinite(loss):
            raise NotFiniteError(f"{instance.label}: the loss is {loss}")
        return Evaluation(loss, 0.001 * loss, 9 * (loss,) + (math.nan,), 1.5)

    def _difficulty(self, instance: CheapInstance, table_seed: int | None) -> float:
        seed = self._estimator.seed if table_seed is None else table_seed
        return 1 + 0.01 * random.Random(f"{instance.place}{instance.resize} {seed}").random()

    def picture(self, instance: Instance, model: float) -> bytes:
        return PICTURE

    def fingerprint(self) -> dict[str, str]:
        labels = [f"{i.label}@{i.network}" for i in self.instances()]
        return {
            "data": "cheap",
            "networks": "none:",
            "instances": " ".join([self._asked.resize, *labels]),
            "estimator": self._estimator.model_dump_json(),
        }

    def identity(self, instance: Instance) -> list[str]:
        assert isinstance(instance, CheapInstance)
        return [instance.place + instance.resize]

    def grade(self, loss: float) -> str | None:
        return None

    def challenge(self, file: Path, runes: int, passes: int) -> Iterator[str]:
        yield f"challenge: {runes} runes"
