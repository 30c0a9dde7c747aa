"""A user's own file as a method: any Python file with a `finetune_model`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import UserError
from ..formatting import counted
from ..process.devices import machine_memory_gb, n_cores
from .base import (
    Called,
    CallFailedError,
    Claim,
    Field,
    Instance,
    InvalidValuesError,
    OnStep,
    OutOfTimeError,
    Problem,
    Values,
    Workload,
)
from .torch_method import TorchMethod
from .user_file.parameters import Style, UserFile, parse_user_file, require_parameters

# Torch takes seconds to import, and who only reads a study file needs none of it.
if TYPE_CHECKING:
    from .instances import RuneInstance
    from .user_file.runner import Moment, Request

_MOST_OUTPUT = 500  # characters of a call's output that are stored, from its end
_LOAD_S = 120.0  # time limit for importing the file
# Share of the machine's memory that the calls of all its workers may use together.
_MEMORY_SHARE = 0.75


class FileMethod(TorchMethod):
    """A `hpo.problem.base.Method` whose calls run a user's file, each in a process of its own.

    A call runs the text that would be exported: the file with the values in place of its defaults.

    Args:
        path: path of the file.
        text: text of the file.
        style: which kind of values are parameters; None: the first kind that the file has.
        steps: name of the parameter with the number of steps.
        memory_gb: memory limit of a call in GiB; None: this worker's share of most of the memory.
        tuned: whether the file must have parameters.

    Raises:
        UserError: the file has no parameters of that style, or none called ``steps``.
    """

    def __init__(
        self,
        path: Path,
        text: str,
        style: Style | None = None,
        steps: str | None = None,
        memory_gb: float | None = None,
        tuned: bool = True,
    ) -> None:
        self._file = parse_user_file(path, text, style)
        if tuned:
            require_parameters(self._file, style)
        self._steps, self._memory_gb, self._tuned = steps, memory_gb, tuned
        if steps is not None and (steps not in self.fields or self.fields[steps].kind != "int"):
            whole = [name for name, field in self.fields.items() if field.kind == "int"]
            raise UserError(
                f"method.steps is {steps!r}; write a whole number of {path}: "
                f"{', '.join(whole) or 'it has none'}"
            )
        self._threads = 1

    @property
    def file(self) -> UserFile:
        """The parsed file."""
        return self._file

    @cached_property
    def fields(self) -> Mapping[str, Field]:
        return {name: p.field for name, p in self._file.parameters.items()}

    def complete(self, values: Values) -> dict[str, Any]:
        whole = {name: field.default for name, field in self.fields.items()}
        for name, value in values.items():
            if name not in whole:
                raise InvalidValuesError(
                    f"{self._file.path} has no parameter {name!r}; it has {', '.join(whole)}"
                )
            field = self.fields[name]
            field.check(name, value)
            whole[name] = {"float": float, "int": int}.get(field.kind, lambda v: v)(value)
        return whole

    def prepare(self, device: str | None, threads: int) -> None:
        from .user_file.runner import start_server

        start_server()  # started now, so that it imports torch while this process does, too
        super().prepare(device, threads)
        self._threads = threads
        if self._tuned:  # in a race of files one that can't be loaded just loses
            self._check_loads()

    def units(self, instruction_set: str) -> str:
        import torch

        # The number of threads changes the rounding of sums, too.
        return f"{instruction_set}, {counted(torch.get_num_threads(), 'thread')}"

    def speed(self) -> float | None:
        return self._speed

    @cached_property
    def _speed(self) -> float:
        from .user_file.speed import steps_per_second

        return steps_per_second()

    def workload(self, values: Values, instance: Instance) -> Workload | None:
        return None  # the work in a step of the file is unknown

    def call(
        self,
        values: Values,
        instances: Sequence[Instance],
        on_step: OnStep,
        steps: Sequence[int] | None = None,
    ) -> list[Called]:
        # One after another, because a call may use all of its worker's threads.
        called = []
        for index, instance in enumerate(instances):
            asked, rune = self.complete(values), cast("RuneInstance", instance)
            if steps is not None and self._steps is not None:
                asked[self._steps] = steps[index]
            elif rune.speed is not None and self._steps is not None:
                asked[self._steps] = max(1, round(rune.speed * asked[self._steps]))
            called.append(self._call(asked, rune, partial(on_step, index)))
        return called

    def _call(
        self, values: Values, instance: RuneInstance, on_moment: Callable[[Moment], None]
    ) -> Called:
        from .user_file.runner import Call, RemoteNetwork

        whole = self.complete(values)
        wanted = None if self._steps is None else int(whole[self._steps])
        call = Call(self._request(self._file.with_values(whole), instance))
        try:
            made, seconds = call.follow(on_moment, wanted)
        except OutOfTimeError as error:
            call.note_output(error)
            call.close()
            raise
        except BaseException:
            call.close()
            raise
        return Called(RemoteNetwork(call), made, seconds, wanted, call.output[-_MOST_OUTPUT:])

    def _request(self, text: str, instance: RuneInstance | None = None) -> Request:
        from .user_file.runner import Request

        share = self._threads / n_cores()
        return Request(
            text=text,
            path=self._file.path,
            threads=self._threads,
            memory_gb=self._memory_gb or _MEMORY_SHARE * machine_memory_gb() * min(1.0, share),
            reports=self._file.reports,
            seed=instance.seed if instance else 0,
            drawings=instance.split.train if instance else None,
            state=dict(instance.pretrained.state_dict()) if instance else {},
        )

    def _check_loads(self) -> None:
        """Load the file once with its own values, to report mistakes before the first trial.

        Raises:
            UserError: the file can't be loaded.
        """
        from .user_file.runner import Call

        call = Call(self._request(self._file.source.text), load_only=True)
        try:
            call.load(_LOAD_S)
        except CallFailedError as error:
            raise UserError(f"{self._file.path} can't be loaded: {error}") from error
        finally:
            call.close()

    def fingerprint(self) -> dict[str, str]:
        from .fingerprint import file_digest

        return {
            "code": file_digest(self._file.source.text),
            "torch": ".".join(version("torch").split(".")[:2]),
            "file": f"{self._file.name}, {self._file.style}",
            "clock": "wall, which the file may read",
        }

    def export(self, values: Values, about: str) -> str:
        # The file stays as its author wrote it: no heading is added.
        return self._file.with_values(self.complete(values))

    def prove(
        self, file: Path, values: Values, problem: Problem, limit_s: float, claims: Sequence[Claim]
    ) -> Iterator[str]:
        from .user_file.proof import prove_call, prove_text

        text = file.read_bytes().decode()
        yield prove_text(self._file, text, self.complete(values))
        yield from prove_call(self, text, problem, limit_s, claims)

    def as_written(self, text: str) -> FileMethod:
        """This method with another text of the file, such as an exported one."""
        method = FileMethod(self._file.path, text, self._file.style, self._steps, self._memory_gb)
        method._threads = self._threads
        return method
