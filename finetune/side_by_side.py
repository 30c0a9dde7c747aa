"""Adapt several tasks in lockstep; on a GPU this is barely slower than one.

The submission makes one call at a time and does not use this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .adapt import Adapted, Progress, adapt, check_finite
from .machine.device import is_gpu_failure, standard_settings, training_device
from .recipe import Recipe
from .train.cuda_graph import CapturedSteps
from .train.run import Run
from .train.schedule import Clock

# Fields in which the recipes of tasks side by side must be equal.
_SHARED = ("steps", "batch_size", "deadline_s")


@dataclass(frozen=True)
class Task:
    """The arguments of a call."""

    pretrained_model: nn.Module
    drawings: Tensor  # (n, 1, 28, 28)
    recipe: Recipe


def adapt_together(
    tasks: Sequence[Task], on_step: Callable[[int, Progress], bool | None]
) -> list[Adapted]:
    """Run `adapt` on each task: in lockstep on a GPU, one after the other on a CPU.

    On a GPU all tasks share one clock, which shortens all their schedules alike.

    Args:
        tasks: one or more, with networks on one device and recipes of the same ``steps``,
            ``batch_size`` and ``deadline_s``.
        on_step: called after each step with the task's index and its progress; a true answer
            ends the task, and on a GPU all.

    Raises:
        AdaptationError: a loss is not finite.
        ValueError: the tasks can't go side by side.
    """
    if len({tuple(getattr(t.recipe, name) for name in _SHARED) for t in tasks}) != 1:
        raise ValueError(f"tasks side by side need equal {', '.join(_SHARED)}")
    device = training_device(next(tasks[0].pretrained_model.parameters()).device)
    if device.type == "cuda":
        try:
            return _adapt_on(device, tasks, on_step)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
        except RuntimeError as error:
            if not is_gpu_failure(error):
                raise
    return [
        adapt(t.pretrained_model, t.drawings, t.recipe, partial(on_step, k))
        for k, t in enumerate(tasks)
    ]


def _adapt_on(
    device: torch.device,
    tasks: Sequence[Task],
    on_step: Callable[[int, Progress], bool | None],
) -> list[Adapted]:
    start = time.perf_counter()
    recipe = tasks[0].recipe
    stopped = False
    with standard_settings(device):
        runs = [Run(device, t.pretrained_model, t.drawings, t.recipe) for t in tasks]
        clock = Clock(start, recipe.steps, recipe.deadline_s)
        steps = CapturedSteps(runs, device)
        while not clock.is_over and not stopped:
            steps.draw()
            share = clock.share
            losses = steps.train(share, clock.tick())
            for loss in losses:
                check_finite(loss, clock.step, recipe)
            elapsed_s = clock.elapsed_s
            for k, loss in enumerate(losses):
                progress = Progress(clock.step, clock.share, loss, elapsed_s)
                stopped = bool(on_step(k, progress)) or stopped
        models = [run.finished() for run in runs]
    seconds, stopped = clock.elapsed_s, stopped and clock.share < 1
    return [Adapted(model, clock.step, seconds, stopped) for model in models]
