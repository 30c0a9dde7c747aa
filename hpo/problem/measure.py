"""A call of a method on instances of a problem, as trials and confirmations make it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from .base import (
    CallFailedError,
    Evaluation,
    Instance,
    Method,
    NotFiniteError,
    OnStep,
    OutOfTimeError,
    Problem,
    Progress,
    Values,
)

# A call by steps may take as long as the machine needs, but after so many time limits it hangs.
HUNG = 20


class HungError(RuntimeError):
    """A call by steps took many times the limit, which is the machine's fault."""


@dataclass(frozen=True)
class Measurement:
    """The score of a call, with its time and steps."""

    evaluation: Evaluation
    seconds: float  # time of the call, without the evaluation
    steps: int
    steps_wanted: int | None  # of a schedule that no clock cuts; None: not known
    model: object  # that the call returned
    output: str = ""  # the end of what the method printed


def measure(
    method: Method,
    problem: Problem,
    values: Values,
    instances: Sequence[Instance],
    limit_s: float,
    on_step: OnStep,
    table_seed: int | None = None,
    steps: Sequence[int] | None = None,
) -> list[Measurement]:
    """Call the method on each instance and evaluate what it returns.

    Args:
        limit_s: seconds after which a call is stopped.
        on_step: as in `Method.call`.
        table_seed: as in `Problem.evaluate`.
        steps: as in `Method.call`; if given, a call is stopped only after many times the limit.

    Raises:
        OutOfTimeError: a call was stopped at the limit.
        HungError: a call by steps was stopped.
        NotFiniteError: a loss is not finite.
        CallFailedError: the method's own code failed.
    """
    label = " and ".join(instance.label for instance in instances)

    def step(index: int, progress: Progress) -> None:
        on_step(index, progress)
        if steps is not None:
            if progress.elapsed_s > HUNG * limit_s:
                raise HungError(
                    f"stopped on {label} after {progress.elapsed_s:.0f} s, at step "
                    f"{progress.step} of {steps[index]}: {HUNG} times the limit of {limit_s:g} s; "
                    "this machine is too slow or too busy for the study"
                )
        elif progress.elapsed_s > limit_s:
            raise OutOfTimeError(
                f"stopped on {label} after {progress.elapsed_s:.1f} s, at step {progress.step} "
                f"({progress.share:.0%} of the schedule); the limit is {limit_s:g} s"
            )

    with _named(label):
        calls = method.call(values, instances, step, steps)
    measured = []
    for instance, called in zip(instances, calls, strict=True):
        seconds = round(called.seconds, 3)
        evaluation = problem.evaluate(called.model, instance, seconds, table_seed)
        measured.append(
            Measurement(
                evaluation,
                seconds,
                called.steps,
                called.steps_wanted,
                called.model,
                called.output,
            )
        )
    return measured


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Prefix errors with the instance's label; their notes stay."""
    try:
        yield
    except (NotFiniteError, CallFailedError) as error:
        error.args = (f"{label}: {error}",)
        raise
