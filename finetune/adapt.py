"""`finetune_model`: adapt a pretrained network to a new class from a few drawings."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .data.drawings import read_drawings
from .machine.device import is_gpu_failure, standard_settings, training_device
from .machine.threads import fastest_threads
from .predict.ensemble import answer_as_one, count_members
from .recipe import Recipe
from .train.cuda_graph import CapturedSteps
from .train.executors import Steps
from .train.run import Run
from .train.schedule import Clock
from .train.threaded import ThreadedSteps

# Fields in which recipes of tasks side by side are equal.
_SHARED = ("steps", "batch_size", "members", "member_steps", "deadline_s")


class AdaptationError(RuntimeError):
    """The run can't go on: its loss is not finite."""


@dataclass(frozen=True)
class Progress:
    """What a callback is told after each step."""

    step: int  # steps done
    share: float  # of the schedule, in [0, 1]
    loss: float  # of this step's batch, the mean of the members'
    elapsed_s: float


@dataclass(frozen=True)
class Adapted:
    """An adapted network and how it came about."""

    model: nn.Module
    steps: int  # of each of its members
    members: int  # networks whose mean it is; 1: it is one itself
    seconds: float
    stopped: bool  # by the callback, before the schedule's end


@dataclass(frozen=True)
class Task:
    """What a call is given."""

    pretrained_model: nn.Module
    drawings: Tensor  # (n, 1, 28, 28)
    recipe: Recipe


def finetune_model(
    pretrained_model: nn.Module, train_dataset: Any, recipe: Recipe | None = None
) -> nn.Module:
    """The challenge's call: a network that has learnt the dataset's class under label 10.

    Args:
        pretrained_model: the course's network or ours; it is left as it was.
        train_dataset: pairs (image, label) or bare images, each 1x28x28 in [0, 1]; what else is
            understood: `read_drawings`.

    Raises:
        ValueError: the dataset is empty, or not of drawings: see `read_drawings`.
        AdaptationError: the loss is not finite.
    """
    drawings = read_drawings(train_dataset)
    return adapt(pretrained_model, drawings, recipe or Recipe()).model


def adapt(
    pretrained_model: nn.Module,
    drawings: Tensor,
    recipe: Recipe,
    on_step: Callable[[Progress], bool | None] | None = None,
) -> Adapted:
    """Adapt a copy of ``pretrained_model`` to ``drawings`` (n, 1, 28, 28), as ``recipe`` says.

    Runs where the model is, or on a GPU when there is one, and returns it where it was; a GPU
    that fails or lacks memory leaves the run to the CPU, from its first step and with the time
    that is left.  The process's own settings are neither used nor changed.
    The schedule follows max(step / steps, elapsed / deadline): a slow machine does fewer
    steps, but always ends its schedule, in time.  Where there is time for several networks
    (``recipe.members``) their mean is returned.  When the deadline is far, the result
    depends on the recipe, the drawings, the machine and its threads alone.

    Args:
        on_step: called after each step; a true answer ends the run there.

    Raises:
        AdaptationError: the loss is not finite.
    """

    def told(progress: Sequence[Progress]) -> bool:
        return on_step is not None and bool(on_step(progress[0]))

    return adapt_together([Task(pretrained_model, drawings, recipe)], told)[0]


def adapt_together(
    tasks: Sequence[Task], on_step: Callable[[Sequence[Progress]], bool | None]
) -> list[Adapted]:
    """What `adapt` makes of each task, in the time of few of them where there is a GPU.

    They go step by step side by side, from one start: the clock that shortens a schedule is the
    clock of all.

    Args:
        tasks: one or more, with networks on one device and recipes of the same ``steps``,
            ``batch_size``, ``members``, ``member_steps`` and ``deadline_s``.
        on_step: called after each step with the progress of each; a true answer ends all.

    Raises:
        AdaptationError: a loss is not finite.
        ValueError: the tasks can't go side by side.
    """
    start = time.perf_counter()
    if len({tuple(getattr(t.recipe, name) for name in _SHARED) for t in tasks}) != 1:
        raise ValueError(f"tasks side by side need equal {', '.join(_SHARED)}")
    device = training_device(next(tasks[0].pretrained_model.parameters()).device)
    try:
        with standard_settings(device), fastest_threads(device):
            return _adapt_on(device, start, tasks, on_step)
    except RuntimeError as error:
        if device.type == "cpu" or isinstance(error, AdaptationError) or not is_gpu_failure(error):
            raise
    with suppress(RuntimeError):  # of a device that is out of order
        torch.cuda.empty_cache()
    device = torch.device("cpu")
    with standard_settings(device), fastest_threads(device):
        return _adapt_on(device, start, tasks, on_step)


def _adapt_on(
    device: torch.device,
    start: float,
    tasks: Sequence[Task],
    on_step: Callable[[Sequence[Progress]], bool | None],
) -> list[Adapted]:
    """The calls themselves; ``start`` is when they began, by `time.perf_counter`."""
    recipe = tasks[0].recipe
    firsts = [Run(device, task.pretrained_model, task.drawings, task.recipe) for task in tasks]
    n = count_members(firsts, device, recipe.deadline_s - (time.perf_counter() - start))
    teams = [[first, *(first.sibling(k) for k in range(1, n))] for first in firsts]
    clock = Clock(start, recipe.steps, recipe.deadline_s)
    stopped = False
    with _steps_of([run for team in teams for run in team], device, threaded=n > 1) as steps:
        while not clock.is_over and not stopped:
            steps.draw()
            share = clock.share
            losses = steps.train(share, clock.tick())
            for loss in losses:
                if not math.isfinite(loss):
                    raise AdaptationError(
                        f"loss is {loss} at step {clock.step} of {recipe.steps}; "
                        f"lower the learning rate ({recipe.lr:g}) or clip the gradient"
                    )
            elapsed_s = clock.elapsed_s
            means = [statistics.fmean(losses[i : i + n]) for i in range(0, len(losses), n)]
            progress = [Progress(clock.step, clock.share, loss, elapsed_s) for loss in means]
            stopped = bool(on_step(progress))
    adapted = [answer_as_one([run.finished() for run in team]).eval() for team in teams]
    seconds, stopped = time.perf_counter() - start, stopped and clock.share < 1
    return [Adapted(model, clock.step, n, seconds, stopped) for model in adapted]


@contextmanager
def _steps_of(
    runs: Sequence[Run], device: torch.device, threaded: bool
) -> Iterator[Steps | CapturedSteps | ThreadedSteps]:
    """How to train ``runs``, on a CPU in threads of their own or one after the other."""
    if device.type == "cuda":
        yield CapturedSteps(runs, device)
    elif threaded:
        with ThreadedSteps(runs) as steps:
            yield steps
    else:
        yield Steps(runs)
