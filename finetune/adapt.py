"""`finetune_model`: adapt a pretrained network to a new class from a few drawings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .machine.device import is_gpu_failure, standard_settings, training_device
from .machine.threads import helper_threads, one_thread
from .recipe import Recipe
from .train.run import Run
from .train.schedule import Clock

IMAGE_SHAPE = (1, 28, 28)


class AdaptationError(RuntimeError):
    """The run can't go on: its loss is not finite."""


@dataclass(frozen=True)
class Progress:
    """What a callback is told after each step."""

    step: int  # steps done
    share: float  # of the schedule, in [0, 1]
    loss: float  # of this step's batch
    elapsed_s: float


@dataclass(frozen=True)
class Adapted:
    """An adapted network and how it came about."""

    model: nn.Module
    steps: int
    seconds: float
    stopped: bool  # by the callback, before the schedule's end


def finetune_model(
    pretrained_model: nn.Module, train_dataset: Any, recipe: Recipe | None = None
) -> nn.Module:
    """The challenge's call: a network that has learnt the dataset's class under label 10.

    Args:
        pretrained_model: the course's network or ours; it is left as it was.
        train_dataset: pairs (image, label) or bare images, each 1x28x28 in [0, 1].

    Raises:
        ValueError: the dataset is empty or its images have another shape.
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

    Trains where the model is, or on a GPU when there is one, and returns the network to where the
    model is.  If the GPU fails or lacks memory, the CPU starts over in the time that is left.  The
    process's own settings are neither used nor changed.
    The schedule follows max(step / steps, elapsed / deadline): a slow machine makes fewer
    steps, but always ends its schedule, in time.  When the deadline is far, the result
    depends on the recipe, the drawings and the machine alone.

    Args:
        on_step: called after each step; a true answer ends the run there.

    Raises:
        AdaptationError: the loss is not finite.
    """
    start = time.perf_counter()
    device = training_device(next(pretrained_model.parameters()).device)
    try:
        return _adapt_on(device, start, pretrained_model, drawings, recipe, on_step)
    except RuntimeError as error:
        if device.type == "cpu" or isinstance(error, AdaptationError) or not is_gpu_failure(error):
            raise
    with suppress(RuntimeError):  # of a device that is out of order
        torch.cuda.empty_cache()
    return _adapt_on(torch.device("cpu"), start, pretrained_model, drawings, recipe, on_step)


def _adapt_on(
    device: torch.device,
    start: float,
    pretrained_model: nn.Module,
    drawings: Tensor,
    recipe: Recipe,
    on_step: Callable[[Progress], bool | None] | None,
) -> Adapted:
    """The training loop; ``start`` is when the call began, by `time.perf_counter`."""
    with standard_settings(device), one_thread(device), helper_threads(device) as threads:
        run = Run(device, pretrained_model, drawings, recipe, threads)
        clock = Clock(start, recipe.steps, recipe.deadline_s)
        stopped = False
        while not clock.is_over and not stopped:
            batch = run.next_batch()  # augmented drawings x, times t, noises e
            share, advance = clock.share, clock.tick()
            run.weights.set_rates(share, advance)
            gradients, flow_loss = run.gradients(batch)
            run.weights.step(gradients)
            loss = flow_loss.item()
            check_finite(loss, clock.step, recipe)
            if on_step is not None:
                stopped = bool(on_step(Progress(clock.step, clock.share, loss, clock.elapsed_s)))
        model = run.finished()
    return Adapted(model, clock.step, clock.elapsed_s, stopped and clock.share < 1)


def check_finite(loss: float, step: int, recipe: Recipe) -> None:
    """Raises AdaptationError where ``loss`` is no number to go on with."""
    if not math.isfinite(loss):
        raise AdaptationError(
            f"loss is {loss} at step {step} of {recipe.steps}; "
            f"lower the learning rate ({recipe.lr:g}) or clip the gradient"
        )


def read_drawings(dataset: Any) -> Tensor:
    """The images of a dataset as one tensor, (n, 1, 28, 28) float32; labels are ignored."""
    images = []
    # By length and index: a dataset need not end an iteration over it properly.
    for item in (dataset[i] for i in range(len(dataset))):
        image = item[0] if isinstance(item, (tuple, list)) else item
        image = torch.as_tensor(image, device="cpu")  # whatever the default device is
        if image.numel() != math.prod(IMAGE_SHAPE):
            raise ValueError(f"an image is {tuple(image.shape)}; expected {IMAGE_SHAPE}")
        images.append(image.detach().to(torch.float32).reshape(IMAGE_SHAPE))
    if not images:
        raise ValueError("the dataset is empty; at least one drawing is needed")
    return torch.stack(images)
