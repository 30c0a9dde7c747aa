"""`finetune_model`: adapt a pretrained network to a new class from a few drawings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .data.drawings import read_drawings
from .machine.device import on_gpu_or_cpu, standard_settings
from .machine.threads import step_threads
from .model.groups import course_network
from .recipe import Recipe
from .train.run import Run
from .train.schedule import Clock


class AdaptationError(RuntimeError):
    """The run can't go on, because its loss is not finite."""


def finetune_model(
    pretrained_model: nn.Module, train_dataset: Any, recipe: Recipe | None = None
) -> nn.Module:
    """Return a copy of the network that has learnt the dataset's class under the next label, 10.

    It trains on a GPU if there is one, and the copy is returned on the network's own device.  The
    process's settings are neither used nor changed.  Other labels get worse, so keep the
    pretrained network for them.

    Args:
        pretrained_model: the course's network or ours; it is not changed.
        train_dataset: pairs (image, label) or bare images, each 1x28x28 in [0, 1].

    Raises:
        ValueError: the network is not the course's, or the dataset is empty or of another kind.
        AdaptationError: the loss is not finite.
    """
    start = time.perf_counter()
    network, drawings = course_network(pretrained_model), read_drawings(train_dataset)
    chosen = recipe or Recipe()

    def train(device: torch.device) -> nn.Module:
        with standard_settings(device), step_threads(device) as threads:
            run = Run(device, network, drawings, chosen, threads)
            clock = Clock(start, chosen.steps, chosen.deadline_s)
            while not clock.is_over:
                take_step(run, clock)
            return run.finished()

    return on_gpu_or_cpu(network, train)


def take_step(run: Run, clock: Clock) -> float:
    """One training step: batch, loss, gradients, weights; returns the batch's flow loss.

    Raises:
        AdaptationError: the loss is not finite.
    """
    batch = next(run.batches)  # augmented drawings x, times t, targets, noises e
    share, advance = clock.share, clock.tick()
    run.weights.set_rates(share, advance)
    gradients, flow_loss = run.gradients(batch)
    run.weights.step(gradients)
    loss = flow_loss.item()
    check_finite(loss, clock.step, run.recipe)
    return loss


def check_finite(loss: float, step: int, recipe: Recipe) -> None:
    """Raise AdaptationError if ``loss`` is not finite."""
    if not math.isfinite(loss):
        raise AdaptationError(f"loss is {loss} at step {step}; lower lr ({recipe.lr:g})")


@dataclass(frozen=True)
class Progress:
    """The argument of the callback after each step."""

    step: int  # steps done
    share: float  # finished share of the schedule, in [0, 1]
    loss: float  # loss of this step's batch
    elapsed_s: float


@dataclass(frozen=True)
class Adapted:
    """An adapted network, with a record of its run."""

    model: nn.Module
    steps: int
    seconds: float
    stopped: bool  # whether the callback ended the run early


def adapt(
    pretrained_model: nn.Module,
    drawings: Tensor,
    recipe: Recipe,
    on_step: Callable[[Progress], bool | None] | None = None,
) -> Adapted:
    """`finetune_model` for ``drawings`` (n, 1, 28, 28), with a callback.

    Args:
        on_step: called after each step; a true result ends the run.

    Raises:
        AdaptationError: the loss is not finite.
    """
    start = time.perf_counter()

    def train(device: torch.device) -> Adapted:
        with standard_settings(device), step_threads(device) as threads:
            run = Run(device, pretrained_model, drawings, recipe, threads)
            clock, stopped = Clock(start, recipe.steps, recipe.deadline_s), False
            while not clock.is_over and not stopped:
                loss = take_step(run, clock)
                if on_step is not None:
                    progress = Progress(clock.step, clock.share, loss, clock.elapsed_s)
                    stopped = bool(on_step(progress))
            model = run.finished()
        return Adapted(model, clock.step, clock.elapsed_s, stopped and clock.share < 1)

    return on_gpu_or_cpu(pretrained_model, train)
