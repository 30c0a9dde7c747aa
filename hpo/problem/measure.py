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


@dataclass(frozen=True)
class Measurement:
    """What came out of a call, and what it took."""

    evaluation: Evaluation
    seconds: float  # of the call alone
    steps: int
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
) -> list[Measurement]:
    """Call the method on each instance and evaluate what it returns.

    Args:
        limit_s: seconds after which a call is stopped.
        on_step: as of `Method.call`.
        table_seed: as of `Problem.evaluate`.

    Raises:
        OutOfTimeError: a call was stopped at the limit.
        NotFiniteError: a loss is not finite.
        CallFailedError: the method's own code failed.
    """
    label = " and ".join(instance.label for instance in instances)

    def step(index: int, progress: Progress) -> None:
        on_step(index, progress)
        if progress.elapsed_s > limit_s:
            raise OutOfTimeError(
                f"stopped on {label} after {progress.elapsed_s:.1f} s, at step {progress.step} "
                f"({progress.share:.0%} of the schedule); the limit is {limit_s:g} s"
            )

    with _named(label):
        calls = method.call(values, instances, step)
    measured = []
    for instance, called in zip(instances, calls, strict=True):
        seconds = round(called.seconds, 3)
        evaluation = problem.evaluate(called.model, instance, seconds, table_seed)
        measured.append(Measurement(evaluation, seconds, called.steps, called.model, called.output))
    return measured


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Puts the instance before what went wrong on it; notes stay."""
    try:
        yield
    except (NotFiniteError, CallFailedError) as error:
        error.args = (f"{label}: {error}",)
        raise
