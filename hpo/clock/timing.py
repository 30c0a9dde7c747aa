"""Time the first steps of a call."""

from __future__ import annotations

from ..problem.base import Instance, Method, NotFiniteError, Progress, Values
from ..process.signals import raise_if_stopped
from .fit import Timing
from .profile import NotTimedError

_WARM_UP = 1 / 3  # share of the steps left untimed: the first allocate memory and load kernels


class _EnoughError(Exception):
    """Ends a call once enough steps were timed."""


def time_call(method: Method, values: Values, instance: Instance, steps: int) -> Timing | None:
    """Begin a call, and stop it after ``steps`` steps.

    Returns:
        None if the loss stopped being finite.

    Raises:
        NotTimedError: the method does not say what work a call does.
        StopError: the process was asked to stop.
    """
    work = method.workload(values, instance)
    if work is None:
        raise NotTimedError("the method can't tell what its calls do")
    elapsed_s: list[float] = []

    def on_step(_: int, progress: Progress) -> None:
        raise_if_stopped()
        elapsed_s.append(progress.elapsed_s)
        if len(elapsed_s) >= steps:
            raise _EnoughError

    try:
        # Start with the values' own number of steps: the start-up depends on it.
        method.call(values, [instance], on_step, [work.steps])
    except _EnoughError:
        pass
    except NotFiniteError:
        return None
    warm = max(1, int(len(elapsed_s) * _WARM_UP))
    step_s = (elapsed_s[-1] - elapsed_s[warm - 1]) / (len(elapsed_s) - warm)
    return Timing(work, max(0.0, elapsed_s[0] - step_s), step_s)
