"""Adapt a pretrained rectified-flow network to a new class from ten drawings.

From trial 0 of study runes: loss 0.0708 ± 0.0002, the mean of 8 instances.  The recipe's digest
is d105002ab92d.

Made from runes 0.1.0, code 68604eb98076, by joining the modules that trials run; branches that
this recipe does not take are left out.  It needs Python 3.10 and torch 2.2 or newer, no file and
no network; it uses a GPU where there is one.  To make it again:

    python -m hpo.export --study runes --trial 0 --out finetune.py
"""

from __future__ import annotations

import copy
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """How to adapt a pretrained network to ten drawings.

    Times within a run are shares of it ("share"), not steps, so that a run that the
    deadline shortens still goes through its whole schedule.  Pixels are those of the
    28x28 image.  Ranges of the augmentation are half-widths of uniform distributions.
    """

    # These are decided, and built into the code below:
    # schedule = "cosine": learning rate after the warm-up
    # lora_rank = 0: rank of the low-rank updates; 0 is full training
    # embedding_init = "mean": start of the new class's embedding
    # output = "levels": a posterior over each pixel's grey level, or the velocity as the network
    #   has it
    # time_sampling = "logit_normal": how t is drawn in training

    # Optimisation
    steps: int = 6000  # optimizer steps when time allows
    batch_size: int = 16  # augmented drawings per step (images)
    lr: float = 0.004  # peak learning rate of AdamW
    warmup: float = 0.05  # linear warm-up of the learning rate (share)
    beta2: float = 0.99  # AdamW's decay of squared gradients
    weight_decay: float = 0.0  # AdamW's decay toward zero
    l2_sp: float = 0.0  # decay toward the pretrained weights (L2-SP)
    clip_norm: float = 1.0  # largest gradient norm; 0 is no clipping
    ema_half_life: float = 0.03  # half-life of the averaged weights; 0 keeps the last ones (share)

    # Several networks
    members: int = 4  # most networks whose mean answers; on a CPU one a thread at most (networks)
    member_steps: int = 1200  # of each member at least; fewer members, if time is short

    # Which layers
    # groups of layers that train; the others are frozen
    train_groups: tuple[str, ...] = (
        "input",
        "down",
        "middle",
        "up",
        "output",
        "norm_bias",
        "embedding",
    )
    embedding_lr_factor: float = 1.0  # learning rate of the new embedding over that of the rest

    # What is learnt
    level_weight: float = 0.15  # of the levels' cross entropy beside the flow loss
    # between the two convolutions of the head's second path; 0: none (channels)
    head_hidden: int = 64
    head_lr_factor: float = 3.0  # learning rate of the levels' head over that of the rest
    views: int = 5  # shifted views over which levels are averaged, at noise
    bank_limit: float = 0.9  # most that the posterior mean over augmented drawings counts, at noise
    logit_mean: float = -0.5  # for logit_normal: mean of logit(t)
    logit_std: float = 1.5  # for logit_normal: deviation of logit(t)

    # Augmentation mix
    # draw along the pen's path anew, warp rebuilt strokes, or the 28x28 drawing itself
    render: str = "pen"
    plain_share: float = 0.0  # drawings left as they are (share)
    rotation_deg: float = 2.0  # rotation, either way (degrees)
    scale: float = 0.2  # size, as a relative change
    aspect: float = 0.3  # width over height, as a relative change
    shear: float = 0.08  # horizontal shear: how upright strokes lean
    slope: float = 0.2  # vertical shear: how level strokes rise
    shift_px: float = 1.5  # shift along each axis (px)
    elastic_px: float = 0.4  # deviation of the elastic grid's offsets (px)
    elastic_grid: int = 5  # elastic control points along each axis (points)
    vertical: float = 1.5  # shifts and elastic offsets along y over those along x
    stroke_px: float = 0.0  # change of the stroke's width (px)
    # at t = 1: how far a drawing may turn into others (not if rendered directly)
    blend: float = 0.8
    blend_from_t: float = 0.2  # t from which drawings blend, in proportion to what t is above it
    blend_spread: float = 1.0  # variety of what it turns into, over that of the drawings

    # The call
    seed: int = 0  # of every random number in the call
    precision: str = "auto"  # number format of a step
    deadline_s: float = 117.0  # wall clock after which the call returns (s)


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


IMAGE_SHAPE = (1, 28, 28)
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


# ------------------------------------------------------------------------------
# Steps on a GPU, captured once and replayed: one launch for all that a step does.
#
# A step on 16 images is some hundred short operations, and to launch each from Python takes longer
# than to do it.  A captured one is launched whole, and those of runs side by side, none of which
# fills a GPU, are branches of one graph that run at the same time.

# Before the capture: libraries choose their kernels, and the optimizer makes its state.
_PLAIN_STEPS = 3


class CapturedSteps:
    """As `Steps`, on a GPU.  Where a step can't be captured, its operations are launched alone."""

    def __init__(self, runs: Sequence[Run], device: torch.device) -> None:
        self._runs = runs
        self._device = device
        self._streams = [torch.cuda.Stream(device) for _ in runs]
        self._drawn: list[Batch] = []  # of each run, always in the same place
        self._left = 0  # batches of these that no step has had
        self._next = torch.zeros(1, dtype=torch.long, device=device)  # of these
        self._losses = torch.zeros(len(runs), device=device)
        self._n_done = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def draw(self) -> None:
        """See that the next step has something to learn from."""
        if self._left:
            return
        drawn = [run.draw() for run in self._runs]
        if self._drawn:
            for places, batches in zip(self._drawn, drawn, strict=True):
                for place, part in zip(places, batches, strict=True):
                    place.copy_(part)
        else:
            self._drawn = drawn
        self._next.zero_()
        self._left = len(drawn[0].x)

    def train(self, share: float, advance: float) -> list[float]:
        """A step at ``share`` of the schedule that covers ``advance``; each run's flow loss."""
        for run in self._runs:
            run.weights.set_rates(share, advance)
        with torch.cuda.device(self._device):
            if self._n_done == _PLAIN_STEPS:
                self._capture()
            if self._graph is None:
                self._train()
            else:
                self._graph.replay()
        self._n_done += 1
        self._left -= 1
        losses: list[float] = self._losses.tolist()
        return losses

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._train()
        except RuntimeError:  # of whatever in the network can't be captured
            for run in self._runs:
                run.weights.flat.forget_gradients()
        else:
            self._graph = graph

    def _train(self) -> None:
        """One step of each run, each in a stream of its own."""
        current = torch.cuda.current_stream()
        for k, (run, stream) in enumerate(zip(self._runs, self._streams, strict=True)):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                batch = Batch(*(part.index_select(0, self._next)[0] for part in self._drawn[k]))
                self._losses[k].copy_(run.train(batch))
        for stream in self._streams:
            current.wait_stream(stream)
        self._next += 1


# ------------------------------------------------------------------------------
# How far a run's schedule has come, by steps or by time.

# The clock has a say in the schedule only after this share of the deadline.  Without it
# the slow first steps of every run would, and two runs of one seed would differ.
_CLOCK_GRACE = 0.1
# A step may take this much longer than the slowest so far without passing the deadline.
_STEP_MARGIN = 1.5


class Clock:
    """The share of the schedule that is done, by steps or by time, whichever is further.

    Args:
        start: when the call began, by `time.perf_counter`.
    """

    def __init__(self, start: float, n_steps: int, deadline_s: float) -> None:
        self._start = start
        self._n_steps = n_steps
        self._deadline_s = deadline_s
        self._last = self.elapsed_s
        self._slowest_step_s = 0.0
        self.step = 0
        self.share = 0.0

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._start

    @property
    def is_over(self) -> bool:
        """Whether no step is left: the schedule is done, or one step outlasted its time."""
        return self.share >= 1 or self.elapsed_s >= self._deadline_s

    def tick(self) -> float:
        """One more step begins to update the weights; returns the share that it covers."""
        now = self.elapsed_s
        self._slowest_step_s = max(self._slowest_step_s, now - self._last)
        self._last = now
        self.step += 1
        # The step after this one must end in time too, or this one is the last.
        usable_s = self._deadline_s - _STEP_MARGIN * self._slowest_step_s
        grace_s = _CLOCK_GRACE * usable_s
        by_time = (now - grace_s) / (usable_s - grace_s) if usable_s > 0 else 1.0
        before = self.share
        self.share = min(1.0, max(self.share, self.step / self._n_steps, by_time))
        return self.share - before


# ------------------------------------------------------------------------------
# Several networks that learn the same drawings, and answer with the mean of their velocities.
#
# A mean of estimators has at most the mean of their errors, and less the more these differ
# (Hansen and Salamon, "Neural Network Ensembles" (1990)).  Networks that start and draw differently
# differ by more than what a network would gain by as many steps more, once it has made enough.

_TRIED_STEPS = 4  # to see how long one takes; the first is slower


class VelocityMean(nn.Module):
    """The mean of what ``members``, networks of the same classes, answer.

    Args:
        bank: of all of them, which is asked once, about the newest class.
    """

    def __init__(self, members: Sequence[nn.Module], bank: ImageBank | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.bank = bank
        self.n_channels_img = members[0].n_channels_img
        self.n_classes: Any = members[0].n_classes

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """The velocity at ``x_t`` (B, 1, 28, 28) for times t (B, 1, 1, 1) and labels c (B,)."""
        total: Tensor = sum(member(x_t, t, c) for member in self.members)
        velocity = total / len(self.members)
        asked = c == self.n_classes - 1
        if self.bank is not None and asked.any():
            velocity[asked] = self.bank.corrected(velocity[asked], x_t[asked], t.to(x_t)[asked])
        return velocity


def answer_as_one(members: Sequence[nn.Module]) -> nn.Module:
    """One network that answers as all ``members`` do on average.

    Banks of theirs become one of all: the more images, the better.
    """
    if len(members) == 1:
        return members[0]
    owners = [member for member in members if isinstance(member, LevelPosterior)]
    banks = [owner.bank for owner in owners if owner.bank is not None]
    for owner in owners:
        owner.bank = None
    return VelocityMean(members, pooled(banks) if banks else None)


def count_members(runs: Sequence[Run], device: torch.device, left_s: float) -> int:
    """How many networks should learn in the place of each of ``runs``, which have not begun.

    On a GPU as many as the recipe allows, for side by side they take little more time than one.
    On a CPU no more than there are threads, and as many as can make the recipe's
    ``member_steps`` in the ``left_s`` that are left: tried, for some steps of networks that are
    thrown away.
    """
    recipe = runs[0].recipe
    if recipe.steps < recipe.member_steps:
        return 1
    if device.type == "cuda":
        return recipe.members
    n = min(recipe.members, torch.get_num_threads() // len(runs)) if device.type == "cpu" else 1
    while n > 1 and left_s < recipe.member_steps * _step_seconds(runs[0], n):
        n -= 1
    return max(n, 1)


def _step_seconds(run: Run, n: int) -> float:
    """How long a step of ``n`` networks takes, each in threads of its own."""
    seconds = []
    with ThreadedSteps([run.sibling(k) for k in range(n)]) as steps:
        for _ in range(_TRIED_STEPS):
            steps.draw()
            start = time.perf_counter()
            steps.train(0.0, 0.0)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


# ------------------------------------------------------------------------------
# Steps of runs side by side on a CPU, each in threads of its own.
#
# A step on 16 small images is some thousand short operations, which gain little by a second core:
# a network does not do half as many steps again on two threads as on one.  Two networks on a thread
# each wait for one another only once a step.

T = TypeVar("T")


class ThreadedSteps:
    """As `Steps`, with torch's threads dealt out to ``runs``; to be entered and left.

    Of each run the numbers are those of a run alone on as many threads.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._steps = [Steps([run]) for run in runs]
        self._pools: list[ThreadPoolExecutor] = []
        self._open = ExitStack()

    def __enter__(self) -> ThreadedSteps:
        threads = torch.get_num_threads()
        # A thread's number is its own, but what it sets is also where later threads start.
        self._open.callback(torch.set_num_threads, threads)
        for _ in self._steps:
            pool = ThreadPoolExecutor(1)
            self._pools.append(self._open.enter_context(pool))
            pool.submit(torch.set_num_threads, max(1, threads // len(self._steps))).result()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def draw(self) -> None:
        """See that the next step has something to learn from."""
        self._each(Steps.draw)

    def train(self, share: float, advance: float) -> list[float]:
        """A step at ``share`` of the schedule that covers ``advance``; each run's flow loss."""
        return [loss for (loss,) in self._each(lambda steps: steps.train(share, advance))]

    def _each(self, what: Callable[[Steps], T]) -> list[T]:
        futures: list[Future[T]] = [
            pool.submit(what, steps) for pool, steps in zip(self._pools, self._steps, strict=True)
        ]
        return [future.result() for future in futures]


# ------------------------------------------------------------------------------
# Steps of runs side by side, one operation after the other.


class Steps:
    """Draws for ``runs`` and trains them, each of them one step at a time."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._drawn: list[Batch] = []  # of each run
        self._left = 0  # batches of these that no step has had

    def draw(self) -> None:
        """See that the next step has something to learn from."""
        if not self._left:
            self._drawn = [run.draw() for run in self._runs]
            self._left = len(self._drawn[0].x)

    def train(self, share: float, advance: float) -> list[float]:
        """A step at ``share`` of the schedule that covers ``advance``; each run's flow loss."""
        losses = []
        for run, drawn in zip(self._runs, self._drawn, strict=True):
            run.weights.set_rates(share, advance)
            losses.append(run.train(Batch(*(part[-self._left] for part in drawn))))
        self._left -= 1
        return [loss.item() for loss in losses]


# ------------------------------------------------------------------------------
# One adaptation under way: what its steps learn from, what a step does, and what comes of it.

# Seeds of siblings lie this far apart, so that no two share a stream of random numbers.
_SEEDS_APART = 1_000_003


class Run:
    """A copy of ``pretrained_model`` that learns ``drawings`` (n, 1, 28, 28) on ``device``.

    Args:
        augment: of these drawings, where there is one already: to prepare it takes a second.
    """

    def __init__(
        self,
        device: torch.device,
        pretrained_model: nn.Module,
        drawings: Tensor,
        recipe: Recipe,
        augment: Augmenter | None = None,
    ) -> None:
        self._pretrained_model = pretrained_model
        weight = next(pretrained_model.parameters())
        self._home, self._dtype = weight.device, weight.dtype
        self.recipe = recipe
        self._model = model = channels_last(copy.deepcopy(pretrained_model), device).train()
        # Of the new class's own stream, so that nothing depends on the global one.
        self._generator = generator = torch.Generator(device).manual_seed(recipe.seed)
        drawings = drawings.to(device)
        precision = resolve_precision(recipe.precision, device)
        label = embedding_of(model).num_embeddings
        add_class(model, _first_embedding(model, drawings, recipe, generator))
        freeze_all_but(model, recipe.train_groups)

        if augment is None:
            augment = Augmenter(drawings, recipe, generator)
        self._augment = augment = augment.with_generator(generator)
        self._c = torch.full((recipe.batch_size,), label, device=device)
        self._learner: LearnsVelocity | LearnsLevels
        self._learner = LearnsLevels(model, device, precision, augment, label, recipe)
        self.weights = Weights(model, self._learner.head, recipe, product_type(precision))

    def sibling(self, k: int) -> Run:
        """Another network that learns the same, by random numbers of its own; 0: by the same."""
        seed = (self.recipe.seed + k * _SEEDS_APART) % 2**63
        return Run(
            self._generator.device,
            self._pretrained_model,
            self._augment.drawings,
            replace(self.recipe, seed=seed),
            self._augment,
        )

    def draw(self) -> Batch:
        """The next batches, as many as it pays to draw together."""
        batches = draw_batches(self._augment, self.recipe, self._generator, self._learner.targets)
        self._learner.prepare(batches.x[:, :, 0, 0, 0].numel())
        return batches

    def train(self, batch: Batch) -> Tensor:
        """One step on a batch, by the rates that the weights have; the flow loss."""
        objective, loss = self._learner.losses(batch, self._c)
        self.weights.step(objective)
        return loss

    def finished(self) -> nn.Module:
        """The network that has learnt, where the pretrained one was, in evaluation mode."""
        self.weights.finish()
        adapted = self._learner.finished()
        for parameter in adapted.parameters():
            parameter.requires_grad_(True)
        return adapted.to(self._home, self._dtype).eval()


def _first_embedding(
    model: nn.Module, drawings: Tensor, recipe: Recipe, generator: torch.Generator
) -> Tensor:
    """The start of the new class's embedding, (16,), from those of the digits."""
    digits = embedding_of(model).weight.detach()
    return digits.mean(0)


# ------------------------------------------------------------------------------
# What a step lowers: the loss of the network's own output, or of a posterior over levels.

_LEVEL_SAMPLES = 512  # augmented drawings in which the levels are counted


class LearnsVelocity:
    """Trains the network's own output."""

    head: tuple[nn.Parameter, ...] = ()

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        self.model = model
        self._velocity = _velocity_model(model, device, precision)

    def targets(self, x: Tensor) -> Tensor:
        """What else there is to learn of images x (n, 1, 28, 28): nothing."""
        return x.new_zeros(len(x))

    def prepare(self, n: int) -> None:
        """``n`` images more will be learnt."""

    def losses(self, batch: Batch, c: Tensor) -> tuple[Tensor, Tensor]:
        """What is lowered and the flow loss, both means over the batch of labels c (B,)."""
        loss = image_losses(self._velocity, batch.x, batch.e, batch.t, c).mean()
        return loss, loss.detach()

    def finished(self) -> nn.Module:
        """What has learnt."""
        return self.model


class LearnsLevels:
    """Trains the posterior over grey levels; see `finetune.posterior`."""

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        precision: str,
        augment: Augmenter,
        label: int,
        recipe: Recipe,
    ) -> None:
        times = torch.arange(_LEVEL_SAMPLES, device=device) / _LEVEL_SAMPLES
        samples = augment(_LEVEL_SAMPLES, times)
        self._levels = grey_levels(augment.drawings, samples, augment.operator)
        # Head and bank have numbers of their own: batches are the same with them and without.
        numbers = torch.Generator(device).manual_seed(recipe.seed + 1)
        self._augment = augment.with_generator(numbers)
        start = torch.Generator(device).manual_seed(recipe.seed + 2)
        self.model = LevelPosterior(
            network, self._levels, label, recipe.views, recipe.head_hidden, start
        )
        self.head = tuple(self.model.head.parameters())
        network.conv_out.requires_grad_(False)  # the head is in its place
        self._features = _feature_model(network, device, precision)
        self._weight = recipe.level_weight
        self._bank_limit = recipe.bank_limit
        self._drawn_at_once = drawn_at_once(device)
        # In one piece that fills: to join many pieces would take twice the memory.
        n = min(BANK_SIZE, recipe.steps * recipe.batch_size) if recipe.bank_limit else 0
        self._bank = torch.empty(n, *augment.drawings.shape[1:], device=device)
        self._n_learnt = self._n_banked = 0

    def targets(self, x: Tensor) -> Tensor:
        """The levels of images x (n, 1, 28, 28), (n, 28, 28)."""
        return self._levels.nearest(x)

    def prepare(self, n: int) -> None:
        """``n`` images more will be learnt."""
        # The bank speaks at noise, so its images are those for noise; as many come as are learnt,
        # so a slow machine makes fewer.
        self._n_learnt += n
        wanted = min(self._n_learnt, len(self._bank))
        while self._n_banked < wanted:
            images = self._augment(self._drawn_at_once)[: len(self._bank) - self._n_banked]
            self._bank[self._n_banked : self._n_banked + len(images)] = images
            self._n_banked += len(images)

    def losses(self, batch: Batch, c: Tensor) -> tuple[Tensor, Tensor]:
        """What is lowered and the flow loss, both means over the batch of labels c (B,)."""
        x, t, labels, e = batch
        losses, entropies = self.model.losses(self._features, labels, x, e, t, c)
        loss = losses.mean()
        return loss + self._weight * entropies.mean(), loss.detach()

    def finished(self) -> nn.Module:
        """What has learnt, with the bank beside it."""
        if self._n_banked:
            full = self._n_banked == len(self._bank)
            images = self._bank if full else self._bank[: self._n_banked].clone()
            self.model.bank = ImageBank(images, self._bank_limit)
            self._bank = images[:0].clone()  # the model's alone
        return self.model


def _velocity_model(model: nn.Module, device: torch.device, precision: str) -> VelocityModel:
    """``model`` as it is called in training: where it is, and in which precision, fastest."""
    if device.type == "cpu" and can_fuse(model):
        return FusedUNet(model, product_type(precision))

    def call(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        with autocast(device, precision):
            velocity: Tensor = model(x_t, t, c)
        return velocity

    return call


def _feature_model(model: nn.Module, device: torch.device, precision: str) -> Features:
    """The same of what the model's last convolution is given."""
    if device.type == "cpu" and can_fuse(model):
        return FusedUNet(model, product_type(precision)).features

    def call(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        with autocast(device, precision):
            return last_features(model, x_t, t, c)

    return call


def product_type(precision: str) -> torch.dtype:
    """The type in which matrices are multiplied, in "fp32" or "bf16"."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


# ------------------------------------------------------------------------------
# What training learns from: augmented drawings, each for a time, with noise and targets.

# Drawing 256 images takes a CPU hardly longer than drawing 32, and a GPU no longer than 2048.
_DRAWN_AT_ONCE, _DRAWN_ON_GPU = 256, 2048


class Batch(NamedTuple):
    """Of B images; or of S batches, with one more axis in front."""

    x: Tensor  # (B, 1, 28, 28)
    t: Tensor  # (B, 1, 1, 1)
    targets: Tensor  # (B, ...)
    e: Tensor  # noise, as x


def drawn_at_once(device: torch.device) -> int:
    """How many images it pays to draw together."""
    return _DRAWN_ON_GPU if device.type == "cuda" else _DRAWN_AT_ONCE


def draw_batches(
    augment: Augmenter,
    recipe: Recipe,
    generator: torch.Generator,
    targets: Callable[[Tensor], Tensor],
) -> Batch:
    """As many batches as it pays to draw together; ``targets`` tells those of images."""
    b, at_once = recipe.batch_size, drawn_at_once(generator.device)
    s = max(1, at_once // b)
    times = torch.cat([_draw_times(recipe, generator) for _ in range(s)])
    # In parts: memory grows with how many are drawn at once.
    x = torch.cat([augment(len(part), part) for part in times.split(at_once)])
    e = torch.randn(x.shape, generator=generator, device=x.device)
    parts = (x, times[:, None, None, None], targets(x), e)
    return Batch(*(part.unflatten(0, (s, b)) for part in parts))


def _draw_times(recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Times for one batch, (B,) in [0, 1)."""
    n = recipe.batch_size
    u = stratified_times(n, generator)
    # The quantile function of a normal, then the logistic: stratified logit-normal times
    # (Esser et al. 2024, section 3.1).
    normal = torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))
    return torch.sigmoid(recipe.logit_mean + recipe.logit_std * normal).clamp(max=1 - 2**-24)


# ------------------------------------------------------------------------------
# The augmentation mix: endless drawings from ten, batched on the device.
#
# The affine and the elastic part are one map of coordinates: it moves the points of a pen's path,
# or is looked up for each pixel, at the cost of one resampling.  There are no flips: runes are
# chiral.

# Above this the drawings are no resized strokes (they may be photographs or already
# grey); they are then warped as they are.  Real drawings rebuild to 1e-4 or better.
_MAX_REBUILD_ERROR = 5e-3
# No pen of that width made the drawings where strokes are narrower or wider than this, over its
# width, or where more bits of one are wrong.  Real ones: 0.86 to 1.26 (little is known of strokes
# that were resized to the nearest pixel) and up to 0.2, mostly under 0.05.
_NARROWEST, _WIDEST = 0.8, 1.32
_MAX_PEN_ERROR = 0.2
_MOST_BLENDED = 20  # drawings: six seconds on one core
_EDGE_SMOOTH_PX = 0.7  # takes the staircase off a one-bit edge
_CALIBRATION_BATCH, _CALIBRATION_ROUNDS = 128, 7


@dataclass(frozen=True)
class _Affine:
    """Maps of the canvas, [-1, 1] along each axis: source to output, each for one of b images.

    ``linear`` (b, 2, 2) is rotation . slope . shear . scaling, ``inverse`` undoes it, ``scale``
    (b,) is how much it enlarges, ``shift`` (b, 2) comes after it.
    """

    linear: Tensor
    inverse: Tensor
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Warp:
    """Coordinates to look up, for each pixel drawn: output to source, in units of the canvas.

    ``grid`` (b, H, W, 2) in [-1, 1] as `F.grid_sample` takes it; ``scale`` (b,) is how much
    larger the output is than the source.
    """

    grid: Tensor
    scale: Tensor


class Augmenter:
    """Draws batches of warped drawings.

    Args:
        drawings: (n, 1, 28, 28) in [0, 1], on the device to draw on.
        recipe: its augmentation fields are used.
        generator: the source of every random number, on the same device.
    """

    def __init__(self, drawings: Tensor, recipe: Recipe, generator: torch.Generator) -> None:
        self.drawings = drawings
        self.recipe = recipe
        self.generator = generator
        # Maps between all pairs cost the square of the number of drawings.
        self._blends = bool(recipe.blend) and len(drawings) <= _MOST_BLENDED
        self.operator: Tensor | None = None  # (28, m), that made the drawings, if it is known
        if recipe.render == "direct":
            self._positions = _pixel_centres(drawings.shape[-1]).to(drawings)
        else:
            self.rebuilt: Rebuilt | None = None
            self.by_pen = False  # drawn along paths
            rebuilt = rebuild(drawings[:, 0])
            if rebuilt.error <= _MAX_REBUILD_ERROR:
                self._prepare(rebuilt)
            else:
                self._positions = _pixel_centres(drawings.shape[-1]).to(drawings)

    def with_generator(self, generator: torch.Generator) -> Augmenter:
        """The same with random numbers of its own."""
        other = copy.copy(self)
        other.generator = generator
        return other

    def __call__(self, n: int, times: Tensor | None = None) -> Tensor:
        """``n`` augmented drawings, (n, 1, 28, 28) in [0, 1].

        Args:
            times: t (n,) at which each of them will be seen; without them, as for t = 1.
        """
        device = self.drawings.device
        index = torch.randint(len(self.drawings), (n,), generator=self.generator, device=device)
        plain = self._uniform(n) < self.recipe.plain_share
        if self.recipe.render == "direct" or self.rebuilt is None:
            warped = F.grid_sample(
                self.drawings[index],
                self.draw_warp(index, times).grid,
                mode="bilinear",
                align_corners=False,
            )
        else:
            warped = self._strokes(index, times)
        return torch.where(plain[:, None, None, None], self.drawings[index], warped)

    def _strokes(self, index: Tensor, times: Tensor | None) -> Tensor:
        """The drawings ``index`` (n,) along moved paths, or of warped strokes, (n, 1, 28, 28)."""
        if self.by_pen:
            points = self.draw_points(index, times)
            radius = PEN_RADIUS + self._widths(len(index))
            strokes = stamp(points, self._present[index], radius, self._used)
            return resize_with(strokes, self._operator)[:, None]
        warp = self.draw_warp(index, times)
        return self._render(index, warp, self._widths(len(index)))

    def draw_warp(self, index: Tensor, times: Tensor | None = None) -> Warp:
        """Random maps for the drawings ``index`` (n,), as looked up at the positions drawn."""
        r, n = self.recipe, len(index)
        affine = self._draw_affine(n)
        p = self._positions  # (k,)
        k = len(p)
        xy = torch.stack(torch.meshgrid(p, p, indexing="xy"), -1)  # (k, k, 2) as (x, y)
        # Source = inverse (output - shift).
        grid = (xy[None] - affine.shift[:, None, None, :]) @ affine.inverse[:, None].mT
        if r.elastic_px:
            spread = _cubic_matrix(r.elastic_grid, p)  # (k, g)
            field = spread @ self._draw_offsets(n) @ spread.T
            grid = grid + field.movedim(1, -1)
        if r.blend and self._blends and self.operator is not None:
            # What lies at a place of each other drawing, and where in this one.
            maps = self._mixed(self._maps[index], times)
            field = self._map_spread @ maps @ self._map_spread.T
            grid = grid + field.movedim(1, -1)
        return Warp(grid=grid.view(n, k, k, 2), scale=affine.scale)

    def draw_points(self, index: Tensor, times: Tensor | None = None) -> Tensor:
        """Random places to which the paths of the drawings ``index`` (n,) move, (n, P, 2)."""
        r, n = self.recipe, len(index)
        affine = self._draw_affine(n)
        points = self._paths[index]  # on the canvas
        if r.elastic_px:
            points = points + _spread_at(self._elastic_spread[index], self._draw_offsets(n))
        if r.blend and self._blends:
            # Where in each other drawing lies what is here: the maps the other way round.
            maps = self._mixed(self._maps[:, index].transpose(0, 1), times)
            points = points + _spread_at(self._map_spread[index], maps)
        points = points @ affine.linear.mT + affine.shift[:, None]
        return (points + 1) * (BITMAP_SIZE / 2) - 0.5

    def _draw_affine(self, n: int) -> _Affine:
        r = self.recipe
        angle = self._symmetric(n) * math.radians(r.rotation_deg)
        scale = 1 + self._symmetric(n) * r.scale
        stretch = torch.sqrt(1 + self._symmetric(n) * r.aspect)
        shear = self._symmetric(n) * r.shear
        slope = self._symmetric(n) * r.slope
        shift = self._symmetric(n, 2) * self._along * (r.shift_px / self._half_canvas_px)
        cos, sin = torch.cos(angle), torch.sin(angle)
        rotation = torch.stack([cos, -sin, sin, cos], -1).view(n, 2, 2)
        zero, one = torch.zeros_like(shear), torch.ones_like(shear)
        sheared = torch.stack([one, shear, zero, one], -1).view(n, 2, 2)
        unsheared = torch.stack([one, -shear, zero, one], -1).view(n, 2, 2)
        sloped = torch.stack([one, zero, slope, one], -1).view(n, 2, 2)
        unsloped = torch.stack([one, zero, -slope, one], -1).view(n, 2, 2)
        size = torch.stack([scale * stretch, scale / stretch], -1)  # (n, 2)
        return _Affine(
            linear=rotation @ sloped @ sheared * size[:, None, :],
            inverse=(1 / size)[:, :, None] * (unsheared @ unsloped @ rotation.mT),
            scale=scale,
            shift=shift,
        )

    def _draw_offsets(self, n: int) -> Tensor:
        """Elastic displacements of the control points, (n, 2, g, g) on the canvas."""
        g = self.recipe.elastic_grid
        offsets = self._normal(n, 2, g, g) * self._along[:, None, None]
        return offsets * (self.recipe.elastic_px / self._half_canvas_px)

    def _widths(self, n: int) -> Tensor:
        """How far each of ``n`` drawings' edges move outward, (n,) pixels of the bitmap."""
        width = self._symmetric(n) * self.recipe.stroke_px / 2  # each edge moves by half
        return width * BITMAP_SIZE / self.drawings.shape[-1]

    @property
    def _along(self) -> Tensor:
        """Factors of how far points move along x and y, (2,)."""
        root = math.sqrt(self.recipe.vertical)
        return self.drawings.new_tensor([1 / root, root])

    @property
    def _half_canvas_px(self) -> float:
        return self.drawings.shape[-1] / 2

    def _mixed(self, maps: Tensor, times: Tensor | None) -> Tensor:
        """Control displacements (n, 2, GRID, GRID) that turn drawings toward new ones.

        Toward a draw from the normal distribution that has the mean and the covariance of all
        the drawings' ``maps`` (n, kinds, 2, GRID, GRID), by a random part of the way: the further
        the noisier the drawing will be.  What shows through much noise is which drawings there
        could be, and there the more variety the better; with little noise it is the shape of
        strokes, which maps that are not quite right spoil.
        """
        r, (n, kinds) = self.recipe, maps.shape[:2]
        variety = self._normal(n, kinds) * (r.blend_spread / math.sqrt(max(kinds - 1, 1)))
        way = self._uniform(n, 1) * r.blend
        if times is not None:
            way = way * ((times - r.blend_from_t) / (1 - r.blend_from_t)).clamp(min=0)[:, None]
        weights = way * (1 / kinds + variety - variety.mean(1, keepdim=True))
        return (weights[:, None] @ maps.flatten(2)).view(n, *maps.shape[2:])

    def _prepare(self, rebuilt: Rebuilt) -> None:
        """Ready to draw strokes at full resolution."""
        # Only the bitmap's rows and columns that the resize looks at are ever drawn: for
        # plain bilinear and nearest that is a quarter of the pixels or less.
        self.rebuilt = rebuilt
        self._used = rebuilt.operator.abs().sum(0) > 0
        self.operator = self._operator = rebuilt.operator[:, self._used].contiguous()
        if self._blends:
            self._maps = correspondences(rebuilt.bitmaps)
        self._distance = blur(signed_distance(rebuilt.bitmaps)[:, None], _EDGE_SMOOTH_PX)
        # A strip of half-width r and length l has area 2 r l and an edge of length 2 l.
        edge = (self._distance.abs() < 0.5).sum().clamp(min=1)
        self._half_width = (rebuilt.bitmaps.sum() / edge).item()
        of_a_pen = _NARROWEST <= self._half_width / PEN_RADIUS <= _WIDEST
        if self.recipe.render == "pen" and of_a_pen:
            self._prepare_pen(rebuilt)
        if not self.by_pen:
            self._prepare_strokes()

    def _prepare_pen(self, rebuilt: Rebuilt) -> None:
        paths = trace(rebuilt.bitmaps, self._used)
        if paths.error > _MAX_PEN_ERROR:
            return
        self.by_pen = True
        self._paths = (paths.points + 0.5) * (2 / BITMAP_SIZE) - 1
        self._present = paths.present
        within = self._paths.clamp(-1, 1)  # points that pad are far outside, where no control is
        if self.recipe.elastic_px:
            spread = _cubic_matrix(self.recipe.elastic_grid, within.flatten())
            self._elastic_spread = spread.view(*within.shape, -1)  # (n, P, 2, g)
        if self._blends:
            self._map_spread = spline_matrix(within.flatten()).view(*within.shape, -1)

    def _prepare_strokes(self) -> None:
        self._positions = _pixel_centres(BITMAP_SIZE).to(self.drawings)[self._used]
        if self._blends:
            self._map_spread = spline_matrix(self._positions)  # (k, GRID)
        self._offset = 0.0
        self._offset = self._calibrated_offset()

    def _render(
        self, index: Tensor, warp: Warp, width: Tensor, offset: float | None = None
    ) -> Tensor:
        """One-bit strokes at full resolution, resized as the drawings were, (b, 1, 28, 28).

        The pen keeps its width whatever the size of the drawing: with s the scale, d the
        distance to the edge and r the half-width, the edge lies where s (d + r) - r = 0.
        ``width`` (b,) moves the edge outward, in pixels of the bitmap.
        """
        distance = F.grid_sample(
            self._distance[index],
            warp.grid,
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )[:, 0]
        r = self._half_width
        outward = width + (self._offset if offset is None else offset)
        edge = (outward + r) / warp.scale - r
        strokes = (distance < edge[:, None, None]).to(self.drawings.dtype)
        return resize_with(strokes, self._operator)[:, None]

    def _calibrated_offset(self) -> float:
        """How far to move every edge so that the mean grey value is that of the drawings."""
        state = self.generator.get_state()
        n = _CALIBRATION_BATCH
        index = torch.arange(n, device=self.drawings.device) % len(self.drawings)
        warp = self.draw_warp(index, torch.arange(n, device=index.device) / n)
        self.generator.set_state(state)
        none = torch.zeros(n, device=self.drawings.device)
        target = self.drawings.mean()
        low, high = -1.5, 1.5
        for _ in range(_CALIBRATION_ROUNDS):
            middle = (low + high) / 2
            if self._render(index, warp, none, middle).mean() < target:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.drawings.device)

    def _symmetric(self, *shape: int) -> Tensor:
        return 2 * self._uniform(*shape) - 1

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.drawings.device)


def _pixel_centres(n: int) -> Tensor:
    """Centres of ``n`` pixels on a canvas that spans [-1, 1], (n,)."""
    return (torch.arange(n, dtype=torch.float32) + 0.5) * (2 / n) - 1


def _spread_at(spread: Tensor, controls: Tensor) -> Tensor:
    """Fields of ``controls`` (b, 2, g, g) at points whose weights, x then y, are ``spread``.

    (b, P, 2, g) to (b, P, 2).
    """
    b, _, g, _ = controls.shape
    rows = spread[:, :, 1] @ controls.transpose(1, 2).reshape(b, g, 2 * g)
    return (rows.view(b, -1, 2, g) * spread[:, :, :1]).sum(-1)


def _cubic_matrix(n_points: int, positions: Tensor) -> Tensor:
    """Uniform cubic B-spline weights of ``n_points`` control points over [-1, 1], (k, n_points).

    Scaled so that unit control deviations give about unit deviations of the field.
    """
    knots = torch.linspace(-1, 1, n_points, device=positions.device)
    u = (positions[:, None] - knots).abs() / (2 / (n_points - 1))
    near = 2 / 3 - u**2 + u**3 / 2
    far = (2 - u).clamp(min=0) ** 3 / 6
    weights = torch.where(u < 1, near, far)
    return weights / weights.square().sum(1, keepdim=True).sqrt()


# ------------------------------------------------------------------------------
# Where the strokes of one drawing lie in another: smooth maps between all pairs of drawings.
#
# Ten people drew one rune, and the maps between their drawings say how runes of a kind differ:
# more than any jitter does.  Each map is a field of displacements on a coarse grid, spread by
# cubic B-splines (Rueckert et al. 1999, "Nonrigid registration using free-form deformations"),
# and found by gradient descent on blurred drawings, from coarse to fine.

GRID = 8  # control points along each axis
_SIZE = 48  # of the images that are compared, pixels along each axis
_BLURS_PX = (4.0, 2.0, 1.2)
_STEPS = 40  # for each blur
_LR = 0.02  # of displacements; the canvas spans 2
_BENDING_WEIGHT = 0.02


def correspondences(bitmaps: Tensor) -> Tensor:
    """Maps between all pairs of ``bitmaps`` (n, 105, 105), 1 is ink: (n, n, 2, GRID, GRID).

    Entry (i, j) holds control displacements, x then y, on a canvas that spans [-1, 1]: what
    lies at p in drawing j lies at p plus the displacement there in drawing i.  Draws no random
    numbers.  About a second and a half for ten drawings on one core.
    """
    n = len(bitmaps)
    images = F.interpolate(bitmaps[:, None], size=(_SIZE, _SIZE), mode="area")
    i, j = (~torch.eye(n, dtype=torch.bool, device=bitmaps.device)).nonzero().T
    p = (torch.arange(_SIZE, dtype=torch.float32, device=bitmaps.device) + 0.5) * (2 / _SIZE) - 1
    spread = spline_matrix(p)  # (_SIZE, GRID)
    places = torch.stack(torch.meshgrid(p, p, indexing="xy"), -1)  # (_SIZE, _SIZE, 2)
    with torch.enable_grad():
        maps = _boxes_onto_boxes(images, p, i, j).requires_grad_()  # (n (n - 1), 2, GRID, GRID)
        optimizer = torch.optim.Adam([maps], lr=_LR)
        for blur_px in _BLURS_PX if len(i) else ():
            # The blur lowers the contrast; this gives all scales about the same say.
            blurred = blur_px * blur(images, blur_px)
            for step in range(_STEPS):
                optimizer.param_groups[0]["lr"] = _LR * (1 - 0.7 * step / _STEPS)
                field = (spread @ maps @ spread.T).movedim(1, -1)
                moved = F.grid_sample(blurred[i], places + field, align_corners=False)
                error = (moved - blurred[j]).square().mean((1, 2, 3))
                loss = (error + _BENDING_WEIGHT * blur_px**2 * _bending(maps)).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    found = bitmaps.new_zeros(n, n, 2, GRID, GRID)
    found[i, j] = maps.detach()
    return found


def spline_matrix(positions: Tensor) -> Tensor:
    """Uniform cubic B-spline weights (k, GRID) at ``positions`` (k,) in [-1, 1]; rows sum to 1."""
    knots, step = _knots(positions.device)
    u = (positions[:, None] - knots).abs() / step
    near = 2 / 3 - u**2 + u**3 / 2
    far = (2 - u).clamp(min=0) ** 3 / 6
    return torch.where(u < 1, near, far)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (n, 1, H, W), borders repeated."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1))


def _knots(device: torch.device) -> tuple[Tensor, float]:
    """Control points' places, (GRID,), one step beyond the canvas on either side."""
    step = 2 / (GRID - 3)
    return torch.linspace(-1 - step, 1 + step, GRID, device=device), step


def _boxes_onto_boxes(images: Tensor, p: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Maps that bring means and deviations of the ink together, along each axis."""
    knots, _ = _knots(images.device)
    maps = []
    for axis in (3, 2):  # x, y
        ink = images.sum((1, 5 - axis))  # (n, _SIZE)
        ink = ink / ink.sum(1, keepdim=True).clamp(min=1e-6)
        mean = (ink * p).sum(1, keepdim=True)
        deviation = (ink * (p - mean).square()).sum(1, keepdim=True).sqrt().clamp(min=0.05)
        line = mean[i] + deviation[i] / deviation[j] * (knots - mean[j]) - knots  # (pairs, GRID)
        maps.append((line[:, None, :] if axis == 3 else line[:, :, None]).expand(-1, GRID, GRID))
    return torch.stack(maps, 1).contiguous()


def _bending(maps: Tensor) -> Tensor:
    """Mean squared second differences of each map, (pairs,)."""
    along_x = maps[..., 2:] - 2 * maps[..., 1:-1] + maps[..., :-2]
    along_y = maps[..., 2:, :] - 2 * maps[..., 1:-1, :] + maps[..., :-2, :]
    across = maps[..., 1:, 1:] - maps[..., 1:, :-1] - maps[..., :-1, 1:] + maps[..., :-1, :-1]
    parts = (along_x, along_y, across, across)
    return torch.stack([part.square().flatten(1).mean(1) for part in parts]).sum(0)


# ------------------------------------------------------------------------------
# Drawings as what they are: the path of a round pen.
#
# Omniglot's canvas made ink of every pixel whose centre lies within 2.5 pixels of the pen's path:
# such discs inside the ink cover 99 % of it in the Futhorc's drawings, and upright strokes are five
# pixels wide in 92 % of their rows (``python -m benchmarks.pen``).  Drawn again along a path that
# is bent, strokes keep that width to the pixel, which a bent picture of strokes does not.

PEN_RADIUS = 2.5  # pixels of the bitmap, whoever draws
_TRACE_STEPS = 40
_FIRST_LR, _LAST_LR = 0.15, 0.03  # pixels
_FIRST_EDGE, _LAST_EDGE = 0.6, 0.2  # softness of the stroke's edge while fitting, pixels
_STRAIGHT_WEIGHT = 0.4
_LONG_LINK = 1.2  # pixels between neighbours; an edge is then within 0.1 pixels of the stroke's
_NEAR = 5  # pixels from the ink within which bits are looked at
_OUTSIDE = -50.0  # where points stand that pad shorter paths


@dataclass(frozen=True)
class PenPaths:
    """Where the pen was in each of n drawings.

    ``points`` (n, P, 2): x, y in pixels of the bitmap, whose pixel (0, 0) has its centre at
    (0, 0); ``present`` (n, P): the other points only pad.  ``error``: wrong bits over ink bits,
    of the drawing where that is most.
    """

    points: Tensor
    present: Tensor
    error: float


def trace(bitmaps: Tensor, seen: Tensor) -> PenPaths:
    """The paths along which a pen draws ``bitmaps`` (n, H, H), 1 is ink.

    Starts from the skeleton and moves its points by gradient descent until discs around them
    cover the ink and nothing else.  Draws no random numbers.

    Args:
        seen: rows and columns (H,) whose bits are known; only these count.
    """
    points, present = _padded([s.nonzero().flip(1).float() for s in skeletons(bitmaps > 0.5)])
    links = _links(points, present)
    n_links = links.sum(-1, keepdim=True)
    places, bits = _bits_near_ink(bitmaps, seen)
    with torch.enable_grad():
        points = points.requires_grad_()
        optimizer = torch.optim.Adam([points], lr=_FIRST_LR)
        for step in range(_TRACE_STEPS):
            share = step / _TRACE_STEPS
            optimizer.param_groups[0]["lr"] = _FIRST_LR + share * (_LAST_LR - _FIRST_LR)
            edge = _FIRST_EDGE + share * (_LAST_EDGE - _FIRST_EDGE)
            # The nearest point alone decides whether a pixel is ink.
            index = torch.cdist(places, points.detach()).argmin(2)[..., None].expand(-1, -1, 2)
            distance = ((places - points.gather(1, index)).square().sum(-1) + 1e-6).sqrt()
            wrong = (torch.sigmoid((PEN_RADIUS - distance) / edge) - bits).square().sum()
            # Inside a stroke a point lies halfway between its neighbours.
            bend = (links @ points / n_links.clamp(min=1) - points).square().sum(-1)
            loss = wrong + _STRAIGHT_WEIGHT * (bend * (n_links[..., 0] == 2)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    points, present = _with_middles(points.detach(), present, links)
    ink = torch.cdist(places, points).amin(2) <= PEN_RADIUS
    error = (ink != (bits > 0.5)).sum(1) / bits.sum(1).clamp(min=1)  # (n,)
    return PenPaths(points, present, error.max().item())


def stamp(points: Tensor, present: Tensor, radius: Tensor, seen: Tensor) -> Tensor:
    """Ink within ``radius`` (b,) of any of ``points`` (b, P, 2), at the pixels seen alone.

    A disc covers one interval of each row: its ends are counted up and down, and ink is where
    the running sum is positive.

    Args:
        points: x, y in pixels, as in `PenPaths`, wherever they are.
        seen: rows and columns to draw, (H,), k of them.

    Returns:
        Bitmaps (b, k, k) of 0 and 1.
    """
    b, h, k = len(points), len(seen), int(seen.sum())
    device = points.device
    before = F.pad(seen.long().cumsum(0), (1, 0))  # (H + 1,): columns seen left of each
    row_of = torch.where(seen, before[:-1], k)  # rows not seen go to one that is thrown away
    reach = max(0, math.floor(radius.max().item())) if b else 0
    offsets = torch.arange(-reach, reach + 2, device=device)
    x, y = points[..., 0, None], points[..., 1, None]  # (b, P, 1)
    rows = y.floor().long() + offsets  # (b, P, R)
    half_squared = radius.square()[:, None, None] - (rows - y).square()
    drawn = present & (radius >= 0)[:, None]
    inside = (half_squared >= 0) & (rows >= 0) & (rows < h) & drawn[..., None]
    half = half_squared.clamp(min=0).sqrt()
    first = before[(x - half).ceil().long().clamp(0, h)]
    last = before[((x + half).floor().long() + 1).clamp(0, h)]
    row = torch.where(inside, row_of[rows.clamp(0, h - 1)], k)
    place = (torch.arange(b, device=device)[:, None, None] * (k + 1) + row) * (k + 1)
    one = torch.ones((), device=device).expand(place.numel())
    counts = torch.zeros(b * (k + 1) * (k + 1), device=device)
    counts.index_add_(0, (place + first).flatten(), one)
    counts.index_add_(0, (place + last).flatten(), one, alpha=-1)
    covered = counts.view(b, k + 1, k + 1)[:, :k, :k].cumsum(2)
    return (covered > 0).to(points.dtype)


def skeletons(ink: Tensor) -> Tensor:
    """Lines one pixel wide in the middle of the strokes of ``ink`` (n, H, W), both boolean.

    Zhang and Suen, "A fast parallel algorithm for thinning digital patterns" (1984).
    """
    ink = F.pad(ink, (1, 1, 1, 1))
    around = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    before = None
    while before is None or not torch.equal(ink, before):
        before = ink
        for corners in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            near = torch.stack([ink.roll((-dy, -dx), (1, 2)) for dy, dx in around])
            n_near = near.sum(0)
            n_rises = (~near & near.roll(-1, 0)).sum(0)  # from paper to ink, once around
            removed = (n_near >= 2) & (n_near <= 6) & (n_rises == 1)
            for corner in corners:
                removed &= ~near[list(corner)].all(0)
            left = ink & ~removed
            near_left = F.max_pool2d(left.float(), 3, 1, 1) > 0
            ink = left | (ink & ~near_left)  # what would vanish stays: blocks of 2 x 2
    return ink[:, 1:-1, 1:-1]


def _padded(paths: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Points (P_i, 2) of each drawing as (n, P, 2), and which of these there are."""
    longest = max([1, *map(len, paths)])
    points = torch.stack([F.pad(p, (0, 0, 0, longest - len(p)), value=_OUTSIDE) for p in paths])
    return points, points[..., 0] != _OUTSIDE


def _links(points: Tensor, present: Tensor) -> Tensor:
    """Neighbours on the skeletons as (n, P, P) of 0 and 1.

    Points beside each other are neighbours, and diagonal ones that no third one joins.
    """
    far = (points[:, :, None] - points[:, None]).abs()  # (n, P, P, 2)
    pairs = present[:, :, None] & present[:, None]
    beside = ((far.sum(-1) == 1) & pairs).float()
    diagonal = (far.amin(-1) == 1) & (far.amax(-1) == 1) & pairs
    return beside + (diagonal & (beside @ beside == 0))


def _with_middles(points: Tensor, present: Tensor, links: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a point in the middle of long links: the stroke's edge has no scallops."""
    paths = []
    for own, there, linked in zip(points, present, links, strict=True):
        i, j = linked.triu().nonzero().T
        apart = (own[i] - own[j]).norm(dim=-1) > _LONG_LINK
        paths.append(torch.cat([own[there], (own[i] + own[j])[apart] / 2]))
    return _padded(paths)


def _bits_near_ink(bitmaps: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Places (n, Q, 2) as x, y and bits (n, Q) of the pixels seen in and around the ink."""
    i = torch.arange(len(seen), dtype=torch.float32, device=seen.device)[seen]
    places = torch.stack(torch.meshgrid(i, i, indexing="xy"), -1).flatten(0, 1)
    near = F.max_pool2d(bitmaps[:, None], 2 * _NEAR + 1, 1, _NEAR)[:, 0] > 0.5
    near, bits = (a[:, seen][:, :, seen].flatten(1) for a in (near, bitmaps))
    most = int(near.sum(1).max().clamp(min=1))
    nearest = near.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return places[nearest], bits.gather(1, nearest)


# ------------------------------------------------------------------------------
# From 28x28 grey drawings back to the 105x105 one-bit bitmaps they were resized from.
#
# A drawing was made by a linear map of a bitmap, ``image = D bitmap D^T``, with D the
# (28, 105) matrix of some resize.  Which resize is not known: each candidate is tried, and
# the one under which a bitmap of smooth strokes explains the drawings best is kept.  Warps
# can then be drawn at full resolution and resized as the drawings were, so that grey values
# keep their statistics; warping the 28x28 image itself would blur them.

BITMAP_SIZE = 105  # Omniglot's canvas
RESIZES: dict[str, dict[str, object]] = {
    "nearest": {"mode": "nearest"},
    "bilinear": {"mode": "bilinear"},
    "antialiased": {"mode": "bilinear", "antialias": True},
    "area": {"mode": "area"},
    "bicubic": {"mode": "bicubic", "antialias": True},
}
_GREY = 0.02  # values further than this from 0 and 1 are grey
_SCREEN_STEPS, _FIT_STEPS = 15, 80
_SMOOTH_PX = 1.5  # strokes have no detail finer than this
_BINARY_WEIGHT = 2e-3  # pull of unseen pixels to ink or paper


@dataclass(frozen=True)
class Rebuilt:
    """Bitmaps (n, 105, 105), 1 is ink; the operator D (28, 105); and how well it all fits."""

    bitmaps: Tensor
    operator: Tensor
    resize: str
    error: float  # mean squared error of the resized bitmaps, per pixel


def resize_operator(resize: str, n_in: int = BITMAP_SIZE, n_out: int = 28) -> Tensor:
    """The matrix (n_out, n_in) that `F.interpolate` applies along each axis."""
    basis = torch.eye(n_in)[:, None, None, :]  # one unit vector per batch entry, 1 x n_in
    rows = F.interpolate(basis, size=(1, n_out), **RESIZES[resize])  # type: ignore[arg-type]
    return rows[:, 0, 0, :].T.contiguous()


def resize_with(bitmaps: Tensor, operator: Tensor) -> Tensor:
    """``D bitmap D^T``: (n, 105, 105) to (n, 28, 28)."""
    return operator @ bitmaps @ operator.T


def rebuild(images: Tensor) -> Rebuilt:
    """Bitmaps that, resized by the best-fitting operator, give ``images`` (n, 28, 28) in [0, 1].

    Draws no random numbers.  About a second for ten drawings on one core.
    """
    resize = _likeliest_resize(images)
    operator = resize_operator(resize).to(images)
    bitmaps, error = _fit(images, operator, _FIT_STEPS)
    return Rebuilt(bitmaps=bitmaps, operator=operator, resize=resize, error=error)


def _likeliest_resize(images: Tensor) -> str:
    """The candidate under which short fits leave the least error."""
    if ((images < _GREY) | (images > 1 - _GREY)).all():
        return "nearest"  # others can also be two-valued by chance, but only this one always is
    errors = {}
    for resize in RESIZES:
        operator = resize_operator(resize).to(images)
        errors[resize] = _fit(images, operator, _SCREEN_STEPS)[1]
    return min(errors, key=lambda resize: errors[resize])


def _fit(images: Tensor, operator: Tensor, n_steps: int) -> tuple[Tensor, float]:
    """Binary bitmaps of smooth strokes with ``D bitmap D^T`` near ``images``, and the error.

    Adam on the logits of every pixel, seen through a Gaussian: an analysis by synthesis.
    """
    n_in = operator.shape[1]
    smooth = _gaussian_matrix(n_in, _SMOOTH_PX).to(images)
    start = F.interpolate(images[:, None], size=(n_in, n_in), mode="bicubic")[:, 0]
    with torch.enable_grad():
        logits = (8 * start - 4).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.5)
        for _ in range(n_steps):
            ink = torch.sigmoid(2 * (smooth @ logits @ smooth.T))
            loss = (resize_with(ink, operator) - images).square().sum()
            loss = loss + _BINARY_WEIGHT * (ink * (1 - ink)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    bitmaps = (smooth @ logits.detach() @ smooth.T > 0).to(images.dtype)
    return bitmaps, (resize_with(bitmaps, operator) - images).square().mean().item()


def _gaussian_matrix(n: int, sigma: float) -> Tensor:
    """Convolution with a Gaussian as a matrix (n, n); rows sum to one at the borders too."""
    i = torch.arange(n, dtype=torch.float32)
    offsets = (i[:, None] - i[None, :]) / sigma
    # Cut off: further out the weights are subnormal numbers, which processors multiply slowly.
    weights = torch.exp(-0.5 * offsets**2) * (offsets.abs() <= 4)
    return weights / weights.sum(1, keepdim=True)


def signed_distance(bitmaps: Tensor, limit: int = 5) -> Tensor:
    """Distance to the stroke's edge in pixels, negative inside, cut off at ±``limit``.

    Shapes (n, H, W) to (n, H, W).  The edge lies halfway between ink and paper pixels.
    """
    ink = bitmaps > 0.5
    return _distance_to(ink, limit) - _distance_to(~ink, limit)


def _distance_to(mask: Tensor, limit: int) -> Tensor:
    """Distance from each pixel's centre to the edge of ``mask``, 0 inside it, at most ``limit``."""
    h, w = mask.shape[-2:]
    padded = F.pad(mask.float(), (limit,) * 4) > 0.5
    distance = torch.full(mask.shape, float(limit), device=mask.device)
    distance[mask] = 0.0
    for dy in range(-limit, limit + 1):
        for dx in range(-limit, limit + 1):
            length = (dy * dy + dx * dx) ** 0.5
            if 0 < length <= limit:
                there = padded[:, limit + dy : limit + dy + h, limit + dx : limit + dx + w]
                candidate = torch.where(there, length - 0.5, float(limit))
                distance = torch.minimum(distance, candidate)
    return distance.masked_fill(mask, 0.0)


# ------------------------------------------------------------------------------
# A velocity network that answers with a posterior over each pixel's grey level.
#
# With x_t = (1 - t) x + t e the velocity of least error is (x_t - E[x | x_t]) / t.  A network that
# gives it as a number must learn to divide by t, and the grey levels besides.  Here it only says
# which level each pixel probably has, given all the others; what the pixel itself tells is
# Bayes' rule, exact at any t.

Features = Callable[[Tensor, Tensor, Tensor], Tensor]
# Shifts over which the levels' logits are averaged.  Strides make the network see a shifted
# image a little differently.  At much noise there is nothing to gain; at low noise it matters
# which of the resize's places a pixel has, and a shifted one has another: a little less where
# levels are alike at all places.
_SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
_SHIFT_FROM_T, _SHIFT_FROM_T_ALIKE, _SHIFT_TO_T = 0.3, 0.25, 0.75
# Below this t an error of the drawing would be multiplied out of all proportion in training;
# at t = 0 itself the noise can't be seen, and its mean, 0, is the best guess.
_LEAST_T_IN_TRAINING = 0.01
_LEAST_T = 1e-6


class LevelPosterior(nn.Module):
    """The course's network with a head for the levels of its newest class.

    Args:
        network: its last layer is a convolution called ``conv_out``.
        levels: of the pixels of the new class's drawings.
        label: the new class; others get the network's own velocity.
        views: over how many shifts of at most one pixel logits are averaged outside of
            training, 1 to 5.
        n_hidden, generator: of its `LevelHead`.
    """

    means: Tensor  # (K, 28, 28) or (K, 1, 1), as the two below
    variances: Tensor
    log_prior: Tensor

    def __init__(
        self,
        network: nn.Module,
        levels: GreyLevels,
        label: int,
        views: int,
        n_hidden: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        conv: Any = network.conv_out
        device = conv.weight.device
        self.head = LevelHead(conv.in_channels, len(levels.means), n_hidden, device, generator)
        self.register_buffer("means", levels.means)
        self.register_buffer("variances", levels.variances)
        self.register_buffer("log_prior", levels.log_prior)
        self.label = label
        self.n_channels_img = network.n_channels_img
        self.n_classes = network.n_classes
        self.shifts = _SHIFTS[:views]
        alike = levels.means[0].numel() == 1
        self.shift_from_t = _SHIFT_FROM_T_ALIKE if alike else _SHIFT_FROM_T
        self.bank: ImageBank | None = None  # a second opinion outside of training
        self.fuses = device.type == "cpu" and can_fuse(network)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """The velocity at ``x_t`` (B, 1, 28, 28) for times t (B, 1, 1, 1) and labels c (B,)."""
        learnt = c == self.label
        if not learnt.any():
            velocity: Tensor = self.network(x_t, t, c)
            return velocity
        t = t.to(x_t)
        x = self.mean(self._shifted_logits(x_t, t, c), x_t, t)
        if self.bank is not None:
            x = self.bank(x, x_t, t)
        velocity = torch.where(t < _LEAST_T, -x, (x_t - x) / t.clamp(min=_LEAST_T))
        if learnt.all():
            return velocity
        return torch.where(learnt[:, None, None, None], velocity, self.network(x_t, t, c))

    def of_levels(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What each pixel itself tells about its levels, both (B, K, 28, 28).

        Returns:
            The logarithm of a level's probability without logits, up to a constant for each
            pixel, and the pixel's mean value if it has that level.  A level N(m, s^2) gives x_t
            the density N((1 - t) m, (1 - t)^2 s^2 + t^2).
        """
        variance = ((1 - t).square() * self.variances + t.square()).clamp(min=_LEAST_T**2)
        # A pass over all levels of all pixels takes longer than anything else here: few of them.
        error = torch.addcmul(x_t, self.means, t - 1)
        prior = self.log_prior
        if len(self.variances) > 1:  # else it takes no side
            prior = prior - 0.5 * variance.log()
        gain = (1 - t) * self.variances / variance
        log_probability = torch.addcmul(prior, error, error * (-0.5 / variance))
        return log_probability, torch.addcmul(self.means, error, gain)

    def mean(self, logits: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x | x_t], (B, 1, 28, 28): the mean of each level's own, by their probabilities."""
        log_probability, means = self.of_levels(x_t, t)
        return ((logits + log_probability).softmax(1) * means).sum(1, keepdim=True)

    def losses(
        self, features: Features, labels: Tensor, x: Tensor, e: Tensor, t: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What training lowers, for images x (B, 1, 28, 28) with noises e, times t, labels c.

        Args:
            features: what ``conv_out`` is given, as the network computes it in training.
            labels: the levels of the images' pixels, (B, 28, 28).

        Returns:
            The flow loss of each image, with less weight where t is nearly 0, and the cross
            entropy of its pixels' levels, each (B,).
        """
        x_t = interpolate(x, e, t)
        with torch.no_grad():
            log_probability, means = self.of_levels(x_t, t)
        logits = self.head(features(x_t, t, c))
        t = t.clamp(min=_LEAST_T_IN_TRAINING)
        return _level_losses(logits, log_probability, means, labels, x, t)

    def _shifted_logits(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        logits: Tensor = self.head(self._features(x_t, t, c))
        helped = ((t > self.shift_from_t) & (t < _SHIFT_TO_T)).flatten()
        if len(self.shifts) == 1 or not helped.any():
            return logits.to(x_t.dtype)
        some = [a[helped] for a in (x_t, t, c)]
        total = logits[helped]
        for shift in self.shifts[1:]:
            back = (-shift[0], -shift[1])
            features = self._features(some[0].roll(shift, (2, 3)), some[1], some[2])
            total = total + self.head(features).roll(back, (2, 3))
        logits[helped] = total / len(self.shifts)
        return logits.to(x_t.dtype)

    def _features(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        if self.fuses and x_t.device.type == "cpu" and self.means.dtype == torch.float32:
            return FusedUNet(self.network, torch.float32).features(x_t, t, c)
        return last_features(self.network, x_t, t, c)


class _LevelLosses(torch.autograd.Function):
    """Flow loss and cross entropy of level logits z, for p = softmax(z + log probability).

    With x the image, m a level's mean and m' = sum of p m, the losses of one image of n pixels are
    the means over pixels of ((x - m') / t)^2 and of -log p(label).  Their gradients by z are

        (2 / n) p (m - m') (m' - x) / t^2   and   (p - 1 where it is the label) / n.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        log_probability: Tensor,
        means: Tensor,
        labels: Tensor,
        x: Tensor,
        t: Tensor,
    ) -> tuple[Tensor, Tensor]:
        labels = labels[:, None]
        log_p = (logits + log_probability).log_softmax(1)
        entropy = -log_p.gather(1, labels)
        p = log_p.exp_()
        mean = (p * means).sum(1, keepdim=True)
        error = (mean - x) / t  # velocity - (e - x) is minus this, exactly
        ctx.save_for_backward(p, means, mean, error, labels, t)
        return error.square().flatten(1).mean(1), entropy.flatten(1).mean(1)

    @staticmethod
    def backward(ctx: Any, d_losses: Tensor, d_entropies: Tensor) -> Any:
        p, means, mean, error, labels, t = ctx.saved_tensors
        n = mean[0].numel()
        d_mean = d_losses[:, None, None, None] * (2 / n) * error / t
        d_entropy = d_entropies[:, None, None, None] / n
        d_logits = torch.addcmul(d_entropy, means - mean, d_mean).mul_(p)
        d_logits.scatter_add_(1, labels, -d_entropy.expand_as(mean))
        return d_logits, None, None, None, None, None


_level_losses: Callable[..., tuple[Tensor, Tensor]] = _LevelLosses.apply


def last_features(network: nn.Module, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """What the network's last convolution is given, (B, C, 28, 28), whatever its forward does."""
    seen: list[Tensor] = []
    conv: Any = network.conv_out
    hook = conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        network(x_t, t, c)
    finally:
        hook.remove()
    return seen[0]


# ------------------------------------------------------------------------------
# A second opinion where there is noise: the posterior mean over many augmented drawings.
#
# If these images a_i were all there are, the image behind x_t = (1 - t) x + t e would be
#
#     E[x | x_t] = sum_i w_i a_i,   w = softmax_i( -|x_t - (1 - t) a_i|^2 / (2 t^2) ).
#
# That errs for other reasons than a network does (it knows few images, but has nothing to learn),
# so a mean of both is better than either, where enough images have a say; and where hundreds have,
# the images alone are.  At less noise none is like the whole drawing, but near each place many are
# (`finetune.windows`).

# Images, of one network; the time that more would take to draw is better spent on steps.
BANK_SIZE = 32_768
POOLED_SIZE = 65_536  # at most, of several
# Below it one image has nearly all the weight, and no say.
_FROM_T = 0.3
# The share rises with the number of images that have a say: 0 for one, half of its limit for 15.
_SHARPNESS = 10
# Where windows have a say, and how much of the limit, if many images have one.  To look through
# them takes a hundred times longer than to look at whole images, so fewer are looked at.
_WINDOWS_FROM_T, _WINDOWS_TO_T = 0.18, 0.65
_WINDOWS_SHARE = 0.4
_WINDOWED = 8192
_ROWS = 64  # of x_t that are compared at once: bounds the memory


def posterior_mean(images: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """E[x | x_t] over ``images`` (n, 784), and how many of them it rests on.

    Args:
        x_t: (B, 1, 28, 28).
        t: (B, 1, 1, 1), above 0.

    Returns:
        The mean (B, 1, 28, 28), and the effective number of images 1 / sum w_i^2 (B, 1, 1, 1)
        (Kish, Survey Sampling (1965), section 11.7), from 1 to n.
    """
    squares = images.norm(dim=1).square()
    means, effective = [], []
    for y, times in zip(x_t.flatten(1).split(_ROWS), t.flatten().split(_ROWS), strict=True):
        # |x_t|^2 is the same for all images and falls out of the softmax.
        factor = (1 - times) / times.square()
        exponent = (factor[:, None] * y) @ images.T
        exponent.addr_(factor * (1 - times), squares, alpha=-0.5)
        weights = exponent.softmax(1)
        means.append(weights @ images)
        effective.append(1 / weights.norm(dim=1).square())
    return torch.cat(means).view_as(x_t), torch.cat(effective)[:, None, None, None]


class ImageBank(nn.Module):
    """Images (n, 1, 28, 28) and how much their posterior mean counts, at most (``limit``)."""

    images: Tensor  # (n, 784)
    columns: Tensor | None  # of some of them, from the first time on that windows are asked

    def __init__(self, images: Tensor, limit: float) -> None:
        super().__init__()
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("columns", None, persistent=False)
        self.limit = limit

    def forward(self, mean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``mean``, a network's E[x | x_t] (B, 1, 28, 28), with the images' own mixed in."""
        mean = mean.clone()
        noisy = _has_say(t).flatten()
        if noisy.any():
            own, effective = posterior_mean(self.images, x_t[noisy], t[noisy])
            mean[noisy] = self.mixed(mean[noisy], own, effective, t[noisy])
        seen = _has_windows(t).flatten()
        if seen.any():
            near, effective = self.near(x_t[seen], t[seen])
            mean[seen] = self.mixed_near(mean[seen], near, effective, t[seen])
        return mean

    def corrected(self, velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """A network's ``velocity`` (B, 1, 28, 28) with what the images say mixed in."""
        mean = x_t - t * velocity
        corrected: Tensor = self(mean, x_t, t)
        # Where images say nothing the difference is 0, whatever t.
        return velocity + (mean - corrected) / t.clamp(min=_WINDOWS_FROM_T)

    def mixed(self, mean: Tensor, own: Tensor, effective: Tensor, t: Tensor) -> Tensor:
        """``mean`` with what `posterior_mean` says, ``own`` and ``effective``, mixed in."""
        share = self.limit * (1 - 1 / effective) ** _SHARPNESS
        return mean + _has_say(t) * share * (own - mean)

    def near(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What `windowed_mean` says of some of the images."""
        if self.columns is None:  # a bank that goes into a pool is never asked
            with torch.inference_mode(False):
                self.columns = in_columns(self.images[:_WINDOWED])
        return windowed_mean(self.columns, x_t, t)

    def mixed_near(self, mean: Tensor, near: Tensor, effective: Tensor, t: Tensor) -> Tensor:
        """``mean`` with what `near` says, ``near`` and ``effective``, mixed in."""
        share = self.limit * _WINDOWS_SHARE * (1 - 1 / effective)
        return mean + _has_windows(t) * share * (near - mean)


def _has_say(t: Tensor) -> Tensor:
    """Whether whole images have a say at t."""
    return t > _FROM_T


def _has_windows(t: Tensor) -> Tensor:
    """Whether windows on them have one."""
    return (t > _WINDOWS_FROM_T) & (t < _WINDOWS_TO_T)


def pooled(banks: Sequence[ImageBank]) -> ImageBank:
    """One bank of what ``banks`` of one limit hold, in equal parts, up to `POOLED_SIZE` images.

    They are empty afterwards: of a hundred megabytes, both places need not have all at once.
    """
    each = POOLED_SIZE // len(banks)
    sizes = [min(each, len(bank.images)) for bank in banks]
    images = banks[0].images.new_empty(sum(sizes), banks[0].images.shape[1])
    for bank, place in zip(banks, images.split(sizes), strict=True):
        place.copy_(bank.images[: len(place)])
        bank.images = images.new_empty(0, images.shape[1])
    return ImageBank(images, banks[0].limit)


# ------------------------------------------------------------------------------
# What augmented drawings say of each place, by what is near it: a second opinion at less noise.
#
# The posterior mean of `finetune.bank` weighs whole images, and at little noise no image of
# thousands is like the one that is asked about.  But near any one place many are.  So each place p
# has weights of its own, by a window around it:
#
#     w_i(p) = softmax_i( -sum_q g(q - p) (x_t - (1 - t) a_i)_q^2 / (2 t^2) ),   g Gaussian,
#
# and E[x | x_t] is there the mean of the images by those.  What patches alone can tell is what
# convolutional networks tend to say (Kamb and Ganguli, "An analytic theory of creativity in
# convolutional diffusion models" (2024)); this has nothing to learn, and errs for other reasons.
#
# The less noise, the less one has to see to tell images apart: windows are as wide as noise is over
# signal, t / (1 - t).

_WIDTH_PX = 5.5  # deviation of a window at as much noise as signal
_BLOCK = 2  # pixels along each axis that share their weights
# What is computed of so many images stays in a core's cache; and so many questions are put to them
# while they are there.
_AT_ONCE, _TOGETHER = 256, 4


def in_columns(images: Tensor) -> Tensor:
    """Images (n, 784) as `windowed_mean` wants them, (28, 28, n): sums over them are quick."""
    size = int(images.shape[1] ** 0.5)
    return images.T.contiguous().view(size, size, -1)


def windowed_mean(columns: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """E[x | x_t] of each pixel, by what is near it, and how many images it rests on.

    Args:
        columns: images, (28, 28, n).
        x_t: (B, 1, 28, 28).
        t: (B, 1, 1, 1), above 0 and below 1.

    Returns:
        The mean, and the effective number of images 1 / sum w_i^2, from 1 to n, both
        (B, 1, 28, 28).
    """
    parts = zip(x_t[:, 0].split(_TOGETHER), t.flatten().split(_TOGETHER), strict=True)
    means, effective = zip(*(_means(columns, y, times) for y, times in parts), strict=True)
    return torch.cat(means)[:, None], torch.cat(effective)[:, None]


def _means(columns: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Means and effective numbers, both (B, 28, 28), for x_t = ``y`` (B, 28, 28) and t (B,)."""
    weights = _agreements(columns, y, t)
    weights = weights.sub_(weights.detach().amax(-1, keepdim=True)).exp_()
    total = weights.sum(-1)
    effective = (total / torch.linalg.vector_norm(weights, dim=-1)).square()
    n_blocks = total.shape[-1]
    blocks = columns.view(n_blocks, _BLOCK, n_blocks, _BLOCK, -1)
    # One row of pixels after the other: a block's rows do not lie beside each other.
    sums = [
        torch.stack([row @ weights[:, i].permute(1, 2, 0) for row in block])
        for i, block in enumerate(blocks)
    ]
    found = torch.stack(sums).permute(4, 0, 1, 2, 3) / total[:, :, None, :, None]
    spread = effective[:, :, None, :, None].expand(-1, -1, _BLOCK, -1, _BLOCK)
    return found.reshape(y.shape), spread.reshape(y.shape)


def _agreements(columns: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Logarithms of the weights (B, blocks, blocks, n), as of `_means`, up to a constant.

    |x_t|^2 is the same for all images and falls out of the softmax.  What is left of a row of
    pixels is one product with the images' values and their squares.
    """
    b, size, _ = y.shape
    # A window is a product of what its rows and its columns count for.
    width = _WIDTH_PX * t / (1 - t)
    pixels = torch.arange(size, device=y.device, dtype=y.dtype)
    middles = pixels[::_BLOCK] + (_BLOCK - 1) / 2
    counts = (-0.5 * ((middles[:, None] - pixels) / width[:, None, None]).square()).exp()
    counts = counts * ((1 - t).sqrt() / t)[:, None, None]  # (B, blocks, 28)
    of_values = counts * y.transpose(0, 1)[:, :, None]  # (28, B, blocks, 28)
    of_squares = (counts * (-0.5 * (1 - t))[:, None, None]).expand_as(of_values)
    factors = torch.cat([of_values, of_squares], -1).view(size, -1, 2 * size)
    found = columns.new_empty(b, len(middles), len(middles), columns.shape[-1])
    for i, images in enumerate(columns.split(_AT_ONCE, -1)):
        rows = factors @ torch.cat([images, images.square()], 1)
        agreements = counts @ rows.view(size, b, -1).transpose(0, 1)
        found[..., i * _AT_ONCE : (i + 1) * _AT_ONCE] = agreements.view(*found.shape[:3], -1)
    return found


# ------------------------------------------------------------------------------
# Rectified flow: straight lines from data (t=0) to noise (t=1).
#
# Liu, Gong and Liu, "Flow Straight and Fast" (2022), equation 1; here with time running
# from data to noise, as the course has it:
#
#     x_t = (1 - t) x + t e,   dx_t/dt = e - x,   loss = mean (v(x_t, t, c) - (e - x))^2

VelocityModel = Callable[[Tensor, Tensor, Tensor], Tensor]


def interpolate(x: Tensor, e: Tensor, t: Tensor) -> Tensor:
    """The point at time ``t`` (B, 1, 1, 1) on the line from ``x`` to ``e``, both (B, C, H, W)."""
    return (1 - t) * x + t * e


def velocity(x: Tensor, e: Tensor) -> Tensor:
    """The line's velocity, the regression target: constant along the line."""
    return e - x


def image_losses(model: VelocityModel, x: Tensor, e: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """Rectified-flow loss of each image, (B,), averaged over its pixels.

    Args:
        model: ``model(x_t, t, c)``.
        x: images, (B, C, H, W).
        e: standard normal noise of the same shape.
        t: times in [0, 1), (B, 1, 1, 1).
        c: labels, (B,).
    """
    error = model(interpolate(x, e, t), t, c).float() - velocity(x, e)
    return error.square().flatten(1).mean(1)


def stratified_times(n: int, generator: torch.Generator) -> Tensor:
    """``n`` times in [0, 1), one uniform in each of ``n`` equal bins, in random order, (n,).

    Each time alone is uniform, so a mean over them is unbiased; its variance is that
    within the bins only.
    """
    u = torch.rand(n, generator=generator, device=generator.device)
    order = torch.randperm(n, generator=generator, device=generator.device)
    # float32 can round (n - 1 + u) / n up to 1; the network is defined below it.
    return ((order + u) / n).clamp(max=1 - 2**-24)


# ------------------------------------------------------------------------------
# The course's network on CPUs: the same function and gradients, in fewer and cheaper operations.
#
# Convolutions are fastest with channels last, but torch's own GroupNorm is slow there when groups
# are narrow, as they are at the larger resolutions.  There a convolution, its norm and its ReLU are
# one operation here, whose gradient is written out.

# With fewer channels in a group, torch's own norm is slower than ours.
_NARROW_GROUP = 16
# With so many channels on both sides, the gradient of weights in bf16 is faster as one product.
_MANY_CHANNELS = 64
_SAME_WITHIN = 1e-3  # of the output's size; rounding leaves about 1e-6


class _Conv(NamedTuple):
    """What a convolution does beside its weights, in the order of `torch.convolution`."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


class FusedUNet:
    """Calls a network of the course's structure, whose parameters stay where they are.

    Args:
        model: with the attributes of `finetune.unet.ConditionalDiffusionUNet`.
        dtype: of the products and of what lies between layers; parameters stay float32.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model: Any = model
        self._dtype = dtype

    def __call__(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """The velocity, (B, 1, 28, 28) float32, as ``model(x_t, t, c)`` gives it."""
        x = self.features(x_t, t, c)
        head = self._model.conv_out  # of its channels only the image's is used
        weight, bias = head.weight[:1].to(x.dtype), head.bias[:1].to(x.dtype)
        return F.conv2d(x, weight, bias, head.stride, head.padding).float()

    def features(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """What the last convolution is given, (B, 64, 28, 28) in the products' type."""
        model = self._model
        b, _, h, w = x_t.shape
        c_map = model.class_embedding(c)[:, None, None, :].expand(b, h, w, -1)
        planes = [x_t.permute(0, 2, 3, 1), c_map, t.expand(b, h, w, 1)]
        x = torch.cat(planes, dim=-1).to(self._dtype).permute(0, 3, 1, 2)  # (B, 18, 28, 28)

        stem = x = _block(model.conv_in, x)  # (B, 32, 28, 28)
        skips = []
        for down in model.down_blocks:
            x = _block(down, x)  # (B, 64, 14, 14), (B, 128, 7, 7)
            skips.append(x)
        for middle in model.middle:
            x = x + _block(middle, x)  # (B, 128, 7, 7)
        for up, skip in zip(reversed(model.up_blocks), reversed(skips), strict=True):
            x = _block(up, torch.cat([x, skip], dim=1))  # (B, 64, 14, 14), (B, 32, 28, 28)
        return torch.cat([x, stem], dim=1)


@torch.no_grad()
def can_fuse(model: nn.Module) -> bool:
    """Whether `FusedUNet` computes what ``model``, in float32 on the CPU, does.

    Tried on two images: whoever wrote the model, it either agrees or is called as it is.
    """
    x_t = torch.linspace(-1.5, 1.5, 2 * 28 * 28).view(2, 1, 28, 28)
    t = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1)
    with suppress(AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        c = torch.tensor([0, embedding_of(model).num_embeddings - 1])
        fused = FusedUNet(model, torch.float32)(x_t, t, c)
        expected = model(x_t, t, c)
        error = (fused - expected).abs().max()
        return bool(error <= _SAME_WITHIN * expected.abs().max())
    return False


def _block(layers: Any, x: Tensor) -> Tensor:
    """Convolution, GroupNorm and ReLU, once or several times."""
    for conv, norm in zip(layers[0::3], layers[1::3], strict=True):
        how = _Conv(
            conv.stride,
            conv.padding,
            conv.dilation,
            isinstance(conv, nn.ConvTranspose2d),
            conv.output_padding,
            conv.groups,
        )
        if norm.num_channels // norm.num_groups < _NARROW_GROUP:
            x = _fused(
                x, conv.weight, conv.bias, norm.weight, norm.bias, how, norm.num_groups, norm.eps
            )
        else:
            y = _convolve(x, conv.weight.to(x.dtype), conv.bias.to(x.dtype), how)
            # In place: the norm's gradient needs its input, not its output.
            x = F.group_norm(y, norm.num_groups, norm.weight, norm.bias, norm.eps).relu_()
    return x


class _ConvNormReLU(torch.autograd.Function):
    """z = relu(a y + s) with y = conv(x): a norm is one factor and one shift for each channel.

    With m and r a group's mean and inverse deviation over its n numbers, and the norm's gain g
    and offset o: a = g r and s = o - a m.  For d the gradient of a y + s, that of y is
    (differentiate Wu and He, "Group Normalization" (2018), equations 1 and 2)

        a d + p y + q,   p = -(r^2 / n) sum of g d (y - m) r,   q = -(r / n) sum of g d - p m,

    both sums over the group.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gain: Tensor,
        offset: Tensor,
        how: _Conv,
        n_groups: int,
        eps: float,
    ) -> Tensor:
        ctx.weight_dtype = weight.dtype
        weight = weight.to(x.dtype)
        y = torch.convolution(x, weight, bias.to(x.dtype), *how)
        groups = (len(y), n_groups, -1)  # (B, G, C / G), as everything small here
        n = y[0].numel() // n_groups
        y_sum = _sum_over_pixels(y).view(groups)
        mean = y_sum.sum(-1, keepdim=True) / n
        square = _sum_over_pixels(y * y).view(groups).sum(-1, keepdim=True) / n
        rstd = (square - mean * mean).clamp(min=0).add(eps).rsqrt()
        a = gain.view(n_groups, -1) * rstd
        shift = offset.view(n_groups, -1) - a * mean
        z = torch.addcmul(_map(shift, y), y, _map(a, y)).relu_()
        ctx.save_for_backward(x, weight, y, z, gain, mean, rstd, y_sum)
        ctx.how = how
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Any:
        x, weight, y, z, gain, mean, rstd, y_sum = ctx.saved_tensors
        needs = ctx.needs_input_grad
        n_pixels = y[0, 0].numel()
        n = n_pixels * y_sum.shape[-1]
        gain = gain.view(y_sum.shape[1:])
        d = torch.ops.aten.threshold_backward(dz, z, 0)
        d_sum = _sum_over_pixels(d).view_as(y_sum)
        # Sum of d times the normalised y.
        dy_sum = (_sum_over_pixels(d * y).view_as(y_sum) - d_sum * mean) * rstd
        a = gain * rstd
        p = -(rstd * rstd / n) * (gain * dy_sum).sum(-1, keepdim=True)
        q = -(rstd / n) * (gain * d_sum).sum(-1, keepdim=True) - p * mean
        # The bias's gradient is the sum of a d + p y + q: no pass over the pixels is needed.
        d_bias = (a * d_sum + p * y_sum + q * n_pixels).sum(0).flatten() if needs[2] else None
        d_x = d_weight = None
        if needs[0] or needs[1]:
            dy = torch.addcmul(_map(q.expand_as(a), y), y, _map(p.expand_as(a), y))
            dy.addcmul_(d, _map(a, y))
            if needs[0]:
                d_x = _image_gradient(ctx.how, dy, x, weight)
            if needs[1]:
                d_weight = _weight_gradient(ctx.how, dy, x, weight).to(ctx.weight_dtype)
        d_gain, d_offset = dy_sum.sum(0).flatten(), d_sum.sum(0).flatten()
        return d_x, d_weight, d_bias, d_gain, d_offset, None, None, None


_fused: Callable[..., Tensor] = _ConvNormReLU.apply


class _Convolution(torch.autograd.Function):
    """A convolution whose gradients are computed one after the other: faster than both at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, how: _Conv) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return torch.convolution(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            _image_gradient(ctx.how, dy, x, weight) if needs[0] else None,
            _weight_gradient(ctx.how, dy, x, weight) if needs[1] else None,
            _sum_over_pixels(dy).sum(0).to(dy.dtype) if needs[2] else None,
            None,
        )


_convolve: Callable[..., Tensor] = _Convolution.apply


def _image_gradient(how: _Conv, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    wanted = [True, False, False]
    found: Tensor = torch.ops.aten.convolution_backward(dy, x, weight, None, *how, wanted)[0]
    return found


def _weight_gradient(how: _Conv, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    if dy.dtype == torch.bfloat16 and min(weight.shape[:2]) >= _MANY_CHANNELS:
        return _weight_gradient_as_product(how, dy, x, weight)
    wanted = [False, True, False]
    found: Tensor = torch.ops.aten.convolution_backward(dy, x, weight, None, *how, wanted)[1]
    return found


def _weight_gradient_as_product(how: _Conv, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The same as one matrix product, for kernels of odd sizes and no dilation.

    Each place of the smaller map (the output's, or the input's of a transposed convolution) sees
    a patch of the larger one.
    """
    small, large = (x, dy) if how.transposed else (dy, x)
    (b, n_large, h, w), (_, n_small, rows, columns) = large.shape, small.shape
    (k, m), (pad_y, pad_x), (step_y, step_x) = weight.shape[2:], how.padding, how.stride
    padded = large.new_zeros(b, h + 2 * pad_y, w + 2 * pad_x, n_large)
    padded[:, pad_y : pad_y + h, pad_x : pad_x + w] = large.permute(0, 2, 3, 1)
    image, row, pixel, _ = padded.stride()
    patches = padded.as_strided(  # a row of a patch lies in one piece
        (b, rows, columns, k, m * n_large), (image, step_y * row, step_x * pixel, row, 1)
    ).reshape(b * rows * columns, -1)
    product = small.permute(0, 2, 3, 1).reshape(-1, n_small).T @ patches
    return product.view(n_small, k, m, n_large).permute(0, 3, 1, 2)


def _sum_over_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C), float32 or better; it is added up in no less."""
    return x.sum((2, 3)).to(torch.promote_types(x.dtype, torch.float32))


def _map(values: Tensor, like: Tensor) -> Tensor:
    """A number for each channel, (B, G, C / G), as (B, C, 1, 1) in the type of ``like``."""
    return values.reshape(len(values), -1, 1, 1).to(like.dtype)


# ------------------------------------------------------------------------------
# What turns a network's last features into logits of each pixel's grey levels.


class LevelHead(nn.Module):
    """A 3x3 convolution and, beside it, two with a ReLU between; all logits start at zero.

    Which level a pixel has is a question about the shape of an edge around it, more than a sum
    over features can answer; at little noise the second path tells it better.

    Args:
        n_in: channels of the features.
        n_levels: K.
        n_hidden: channels between the two convolutions; 0: there is no second path.
        generator: of the second path's start; without it, torch's own.
    """

    def __init__(
        self,
        n_in: int,
        n_levels: int,
        n_hidden: int,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.direct = _convolution(n_in, n_levels, device)
        self.n_hidden = n_hidden
        if n_hidden:
            self.hidden = _convolution(n_in, n_hidden, device)
            self.outer = _convolution(n_hidden, n_levels, device)
            # He et al., "Delving Deep into Rectifiers" (2015), section 2.2.
            scale = math.sqrt(2 / (9 * n_in))
            nn.init.normal_(self.hidden.weight, 0.0, scale, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """(B, K, 28, 28) float32 from features (B, C, 28, 28) of any float type."""
        logits = _apply(self.direct, features)
        if self.n_hidden:
            logits = logits + _apply(self.outer, _apply(self.hidden, features).relu_())
        # Next to each other lie the pixels, as of the levels' means: quicker than channels last.
        return logits.float().contiguous()


def _convolution(n_in: int, n_out: int, device: torch.device) -> nn.Conv2d:
    # Without its own initialisation, which would draw from the process's random numbers.
    convolution: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, n_in, n_out, 3, padding=1, device=device)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution


def _apply(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """In the type of ``x``, whichever the weights are kept in."""
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    return F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=convolution.padding)


# ------------------------------------------------------------------------------
# The grey levels that a pixel can have: what resizing makes of ink and paper.
#
# A pixel of a plainly resized bitmap looks at up to 2x2 bits, so it has one of 16 values, and
# which ones depends on where it lies; after other resizes it is ink, paper or something between.
# Either way a grey value is a mixture of few narrow normals, and what noise leaves of it has a
# posterior that can be written down.

_MOST_BITS = 2  # along each axis: pixels that look at more have too many values to list
_N_BINS = 16  # of values that can't be listed: paper, ink and equal steps between
_EDGE = 1e-3  # values this near to 0 and 1 are paper and ink
_LEAST_VARIANCE = 1e-8
_LEAST_SHARE = 1e-5  # of pixels at a level; keeps its logarithm finite
_PERIOD = 4  # plain resizing from 105 to 28 looks at bits alike every so many pixels


@dataclass(frozen=True)
class GreyLevels:
    """A pixel's grey value is N(mean, variance) of one of K levels; the prior says how often.

    Each (K, H, W), or (K, 1, 1) in order of grey where all pixels are alike; variances (1, 1, 1)
    where all levels are alike, too.
    """

    means: Tensor
    variances: Tensor
    log_prior: Tensor

    def nearest(self, x: Tensor) -> Tensor:
        """The likeliest level of each pixel of ``x`` (n, 1, H, W), by itself: (n, H, W) long."""
        return _nearest(x, self.means, self.variances)


def grey_levels(drawings: Tensor, samples: Tensor, operator: Tensor | None) -> GreyLevels:
    """The levels of drawings like these.

    Args:
        drawings: real ones, (n, 1, 28, 28) in [0, 1].
        samples: many augmented ones, (N, 1, 28, 28); they tell how common each level is.
        operator: the matrix (28, m) that made the drawings out of bitmaps, if it is known.
    """
    if operator is not None and int((operator != 0).sum(1).max()) <= _MOST_BITS:
        means = _listed(operator)
        # What the list leaves unexplained, such as a file format's rounding, widens every level.
        floor = means.new_full((1, 1, 1), _LEAST_VARIANCE)
        residual = drawings - _values(means, _nearest(drawings, means, floor))
        variances = floor + residual.square().mean()
    else:
        means, variances = _binned(torch.cat([drawings, samples]).flatten())
    labels = _nearest(samples, means, variances)
    shares = F.one_hot(labels, len(means)).float().mean(0).permute(2, 0, 1)  # (K, 28, 28)
    if len(means[0].flatten()) == 1:
        shares = shares.mean((1, 2), keepdim=True)
    else:
        k, h, w = shares.shape
        tiles = (k, h // _PERIOD, _PERIOD, w // _PERIOD, _PERIOD)
        shares = shares.view(tiles).mean((1, 3), keepdim=True).expand(tiles).reshape(k, h, w)
    return GreyLevels(means, variances, torch.log(shares + _LEAST_SHARE))


def _listed(operator: Tensor) -> Tensor:
    """Every value that each pixel of ``D bits D^T`` can have, (K, H, W).

    A level is the same ink in the same of a pixel's bits everywhere, whichever grey that makes:
    so it looks alike to a convolution.
    """
    n = int((operator != 0).sum(1).max())
    bits = operator.topk(n, dim=1).indices.sort(1).values  # from left to right
    weights = operator.gather(1, bits)  # (28, n)
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * (n * n)).view(-1, n, n)
    return torch.einsum("ia,jb,kab->kij", weights, weights, patterns.to(weights))


def _binned(values: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances, (K, 1, 1), of ``values`` in bins: paper, equal steps, ink."""
    steps = torch.linspace(_EDGE, 1 - _EDGE, _N_BINS - 1, device=values.device)
    bins = torch.bucketize(values, steps)
    centres = torch.cat([values.new_zeros(1), (steps[1:] + steps[:-1]) / 2, values.new_ones(1)])
    counts = bins.bincount(minlength=_N_BINS).to(values)
    means = torch.zeros_like(counts).index_add(0, bins, values) / counts.clamp(min=1)
    means = torch.where(counts > 0, means, centres)
    squares = torch.zeros_like(counts).index_add(0, bins, (values - means[bins]).square())
    variances = squares / counts.clamp(min=1) + _LEAST_VARIANCE
    return means[:, None, None], variances[:, None, None]


def _nearest(x: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    # One level after the other: `argmin` over all at once takes many times as long on a CPU.
    x = x[:, 0]
    labels = torch.zeros(x.shape, dtype=torch.long, device=x.device)
    best = torch.full_like(x, math.inf)
    for k, (mean, variance) in enumerate(
        zip(means, variances.expand(len(means), -1, -1), strict=True)
    ):
        badness = (x - mean).square() / variance + variance.log()
        labels.masked_fill_(badness < best, k)
        best = torch.minimum(best, badness)
    return labels


def _values(means: Tensor, labels: Tensor) -> Tensor:
    """The mean of each pixel's level, (n, 1, H, W)."""
    every = means.expand(len(means), *labels.shape[1:])
    return every[None].expand(len(labels), -1, -1, -1).gather(1, labels[:, None])


# ------------------------------------------------------------------------------
# The trained parameters with everything that moves them.


class Weights:
    """The parameters of a network that train, those of a head among them, and their optimizer.

    Args:
        dtype: of matrices while they train.
    """

    def __init__(
        self, model: nn.Module, head: Sequence[nn.Parameter], recipe: Recipe, dtype: torch.dtype
    ) -> None:
        self.recipe = recipe
        embedding, vectors, matrices = [], [], []
        for name, parameter in trainable(model):
            if name.startswith("class_embedding"):
                embedding.append(parameter)
            elif parameter.ndim == 1:
                vectors.append(parameter)
            else:
                matrices.append(parameter)
        groups = [matrices, vectors, embedding, list(head)]
        self.flat = FlatParameters(groups, dtype)
        # Toward pretrained values: the new embedding and low-rank factors have none.
        own = {id(p) for name, p in trainable(model) if "parametrizations" in name}
        own |= {id(p) for p in [*embedding, *head]}
        laid = zip([p for group in groups for p in group], self.flat.masters, strict=True)
        self.anchored = [master for p, master in laid if recipe.l2_sp and id(p) not in own]
        self.anchors = [master.clone() for master in self.anchored]
        n_head = sum(p.numel() for p in head)
        sizes = [len(self.flat.values) - n_head, n_head]
        # Apart: the head's gradient is the larger one, and would slow down the rest.
        self.clipped = [part for part in self.flat.gradients.split(sizes) if len(part)]
        # Digits' rows get no gradient, and must not decay either; vectors are not decayed,
        # as is usual.
        factors = (1.0, 1.0, recipe.embedding_lr_factor, recipe.head_lr_factor)
        decays = (recipe.weight_decay, 0.0, 0.0, 0.0)
        some = [k for k, group in enumerate(self.flat.groups) if len(group)]
        self.factors = [factors[k] for k in some]
        self.optimizer = _adamw(
            [{"params": [self.flat.groups[k]], "weight_decay": decays[k]} for k in some], recipe
        )
        if recipe.ema_half_life:
            self.average = self.flat.values.clone()
        self.rates: Sequence[float] | Sequence[Tensor] = [0.0] * (len(some) + 2)
        self._rates_there: Tensor | None = None
        device = self.flat.values.device
        if device.type == "cuda":
            # Always in the same place of its memory: a captured step finds them there.
            self._rates_there = torch.zeros(len(self.rates), device=device)
            self.rates = self._rates_there.unbind()

    def set_rates(self, share: float, advance: float) -> None:
        """The next step is made at ``share`` of the schedule and covers ``advance`` of it."""
        rates = self._rates_at(share, advance)
        if self._rates_there is None:
            self.rates = rates
        else:
            self._rates_there.copy_(torch.tensor(rates))

    def step(self, objective: Tensor) -> None:
        """Move the weights down the gradient, by the rates that were set."""
        objective.backward()
        self.flat.take_gradients()
        if self.recipe.clip_norm:
            for gradient in self.clipped:
                # As `clip_grad_norm_` does.
                gradient.mul_((self.recipe.clip_norm / (gradient.norm() + 1e-6)).clamp(max=1))
        *lrs, toward_anchors, toward_values = self.rates
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        self.optimizer.step()
        with torch.no_grad():
            for weight, anchor in zip(self.anchored, self.anchors, strict=True):
                weight.lerp_(anchor, toward_anchors)
            self.flat.show_values()
            if self.recipe.ema_half_life:
                self.average.lerp_(self.flat.values, toward_values)

    def finish(self) -> None:
        """Put the averaged weights into the model, whose parameters are its own again."""
        if self.recipe.ema_half_life:
            self.flat.values.copy_(self.average)
        self.flat.release()

    def _rates_at(self, share: float, advance: float) -> list[float]:
        """Learning rates of the optimizer's groups; how far to go to anchors, and averages."""
        r = self.recipe
        lr = r.lr * lr_factor(r, share, advance)
        keep = 0.5 ** (advance / r.ema_half_life) if r.ema_half_life else 0.0
        return [*(lr * factor for factor in self.factors), min(1.0, lr * r.l2_sp), 1 - keep]


def lr_factor(recipe: Recipe, share: float, advance: float = 0.0) -> float:
    """Factor of the learning rate for a step from ``share`` to ``share + advance``, in [0, 1]."""
    if share + advance < recipe.warmup:
        return (share + advance) / recipe.warmup
    done = (share - recipe.warmup) / (1 - recipe.warmup)
    done = min(max(done, 0.0), 1.0)
    return 0.5 * (1 + math.cos(math.pi * done))


def _adamw(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW in one fused kernel where this torch has one for this device."""
    options: dict[str, Any] = {"lr": recipe.lr, "betas": (0.9, recipe.beta2)}
    if groups[0]["params"][0].device.type == "cuda":
        return torch.optim.AdamW(groups, fused=True, capturable=True, **options)
    try:
        # Of copies: the optimizer writes into its groups, before it finds that it can't be.
        return torch.optim.AdamW([dict(g) for g in groups], fused=True, **options)
    except RuntimeError:  # on CPUs before torch 2.4
        return torch.optim.AdamW(groups, **options)


# ------------------------------------------------------------------------------
# Parameters laid end to end, so that one operation moves them all.
#
# A network has some sixty parameters, most of them small.  What an optimizer, a clipped gradient
# and a running average do to each costs more in calls than in arithmetic.


class FlatParameters:
    """Float32 values of parameters in one tensor, and their gradients in another.

    While they train, parameters look into that tensor, or those of the first group into a copy
    in ``dtype``: what computes in bf16 then need not convert them one by one.  The order of a
    parameter's numbers in memory stays.

    Args:
        groups: of float32 parameters on one device, dense and without overlap; any may be empty.
        dtype: of the first group's parameters in training.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]], dtype: torch.dtype) -> None:
        self._parameters = [p for group in groups for p in group]
        sizes = [sum(p.numel() for p in group) for group in groups]
        device = self._parameters[0].device
        self.values = torch.empty(sum(sizes), device=device)
        self.gradients = torch.zeros(sum(sizes), device=device)
        self.masters = list(_views(self.values, self._parameters))  # of each parameter
        self._gradients = list(_views(self.gradients, self._parameters))
        for parameter, master in zip(self._parameters, self.masters, strict=True):
            master.copy_(parameter.detach())
            parameter.data = master
        # Each group's, as an optimizer takes it.
        self.groups: list[nn.Parameter] = []
        parts = zip(self.values.split(sizes), self.gradients.split(sizes), strict=True)
        for values, gradients in parts:
            group = nn.Parameter(values)
            group.grad = gradients
            self.groups.append(group)
        self._first = self.groups[0].detach()
        self._seen = self._first.to(dtype)  # the same tensor in float32
        for parameter, seen in zip(groups[0], _views(self._seen, groups[0]), strict=True):
            parameter.data = seen

    def take_gradients(self) -> None:
        """Move the parameters' gradients, where they have one, into ``gradients``."""
        places, gradients = [], []
        for parameter, place in zip(self._parameters, self._gradients, strict=True):
            if parameter.grad is None:
                place.zero_()
            else:
                places.append(place)
                gradients.append(parameter.grad)
        _copy(places, gradients)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Let the parameters have none."""
        for parameter in self._parameters:
            parameter.grad = None

    def show_values(self) -> None:
        """Let the parameters be what ``values`` has become."""
        if self._seen is not self._first:
            self._seen.copy_(self._first)

    def release(self) -> None:
        """Give each parameter float32 memory of its own again."""
        for parameter, master in zip(self._parameters, self.masters, strict=True):
            parameter.data = master.clone()


def _copy(places: list[Tensor], values: list[Tensor]) -> None:
    """Copy each of ``values`` to its place: on a GPU in few operations, where torch can."""
    if hasattr(torch, "_foreach_copy_") and places and places[0].device.type == "cuda":
        torch._foreach_copy_(places, values)
    else:
        for place, value in zip(places, values, strict=True):
            place.copy_(value)


def _views(flat: Tensor, parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
    """The places of ``parameters`` in a tensor as long as all of them."""
    start = 0
    for p in parameters:
        yield flat.as_strided(p.shape, p.stride(), start)
        start += p.numel()


# ------------------------------------------------------------------------------
# Groups of layers, freezing, and low-rank updates (LoRA) of convolutions.

# The first part of a parameter's name gives its group; vectors are a group of their own.
_GROUP_OF_PREFIX = {
    "class_embedding": "embedding",
    "conv_in": "input",
    "down_blocks": "down",
    "middle": "middle",
    "up_blocks": "up",
    "conv_out": "output",
}


def group_of(name: str, parameter: Tensor) -> str:
    """The group of a parameter of the U-Net, by its name and shape."""
    group = _GROUP_OF_PREFIX[name.split(".")[0]]
    return "norm_bias" if parameter.ndim == 1 else group


def embedding_of(model: nn.Module) -> nn.Embedding:
    """The class embedding of the U-Net, one row a class."""
    embedding = model.class_embedding
    assert isinstance(embedding, nn.Embedding)
    return embedding


def add_class(model: nn.Module, row: Tensor) -> None:
    """Append ``row`` (16,) to the class embedding: the new class's label is the old count."""
    old = embedding_of(model)
    weight = torch.cat([old.weight.detach(), row.detach().to(old.weight)[None]])
    model.class_embedding = nn.Embedding.from_pretrained(weight, freeze=False)
    model.n_classes = len(weight)  # type: ignore[assignment]


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and values of the parameters that train."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def freeze_all_but(model: nn.Module, groups: tuple[str, ...]) -> None:
    """Only parameters in ``groups`` train."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(group_of(name, parameter) in groups)


# ------------------------------------------------------------------------------
# How many threads to compute with on a CPU that may not be ours alone.
#
# Torch's threads meet after every operation, and wait for each other by spinning.  Where other
# programs want the same cores, or a container gets less time than its cores could give, two threads
# can be several times slower than one.

# Fewer threads must win by this much, so that timing noise can't flip the choice between two runs.
_LEAST_SPEEDUP = 1.3
_RUNS = 7
_QUOTA_FILES = (  # of control groups, version 2 and 1
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)


@contextmanager
def fastest_threads(device: torch.device) -> Iterator[None]:
    """Compute with torch's threads, or with fewer where that is faster; they are put back.

    Two choices take 0.2 s on two idle cores, and 1 s on two busy ones.  Draws no random numbers.
    """
    most = torch.get_num_threads()
    if device.type != "cpu" or most == 1:
        yield
        return
    try:
        threads = min(most, cpu_quota() or most)
        took_s = _seconds(threads)
        while threads > 1 and _LEAST_SPEEDUP * (fewer_s := _seconds(threads // 2)) < took_s:
            threads, took_s = threads // 2, fewer_s
        torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(most)


def cpu_quota() -> int | None:
    """Cores' worth of time that the process's container is given, at least 1; None: no limit.

    Torch counts cores without a look at it.
    """
    for files in _QUOTA_FILES:
        try:
            words = " ".join(Path(file).read_text() for file in files).split()
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # there is none, or it is "max"
            continue
        if quota > 0 and period > 0:
            return max(1, round(quota / period))
    return None


def _seconds(threads: int) -> float:
    """Median time of a layer of the network's bulk."""
    torch.set_num_threads(threads)
    return statistics.median(bulk_seconds(torch.device("cpu"), "fp32", _RUNS))


# ------------------------------------------------------------------------------
# The machine at hand: on which device to train, in which number format, in whose settings.

# bf16 must win by this much, so that timing noise can't flip the choice between two runs.
_BF16_MIN_SPEEDUP = 1.15
# Where bf16 takes this many times as long, one round tells, and no more are made: without hardware
# for it each is a large part of what the choice costs.
_HOPELESS = 5
_ROUNDS = 4

M = TypeVar("M", bound=nn.Module)


def training_device(home: torch.device) -> torch.device:
    """Where to train a network that is at ``home``: a GPU when there is one."""
    return torch.device("cuda") if home.type == "cpu" and torch.cuda.is_available() else home


def is_gpu_failure(error: RuntimeError) -> bool:
    """Whether the GPU, not the run, is at fault: no memory, or a device that torch can't use."""
    words = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        sign in words for sign in ("out of memory", "cuda", "cublas", "cudnn")
    )


@contextmanager
def standard_settings(device: torch.device) -> Iterator[None]:
    """Run with torch's own settings, whatever the process has; they are put back at the end.

    New tensors are float32 and on the CPU unless told otherwise, gradients are recorded, and
    no automatic casting is done on ``device``.  Where deterministic algorithms are asked for,
    an operation that has none runs all the same.
    """
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        if torch.are_deterministic_algorithms_enabled():
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            stack.callback(torch.use_deterministic_algorithms, True, warn_only=warn_only)
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message=".*deterministic")
            torch.use_deterministic_algorithms(True, warn_only=True)
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def channels_last(model: M, device: torch.device) -> M:
    """``model`` moved to ``device`` in float32 with the memory format in which it is fastest."""
    model.to(device, torch.float32)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which to run a forward pass in ``precision`` ("fp32" or "bf16")."""
    # No cache of weights in bf16: inside another autocasting block it would outlive the step, and
    # all steps would run on the first weights.
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
    )


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into "fp32" or "bf16" by a short measurement, made once per process."""
    return _fastest_precision(device.type) if precision == "auto" else precision


@cache
def _fastest_precision(device_type: str) -> str:
    """bf16 without hardware for it is several times slower than fp32: measured, not assumed.

    Takes 0.2 s on two cores with bf16 units, about 1 s without.  Draws no random numbers.
    """
    device = torch.device(device_type)
    if device_type == "cuda" and not torch.cuda.is_bf16_supported():
        return "fp32"
    # By turns: a machine may be slow for a while, and then it is so for both.
    fp32, bf16 = [], []
    for _ in range(_ROUNDS):
        fp32 += bulk_seconds(device, "fp32", runs=2)
        bf16 += bulk_seconds(device, "bf16", runs=2)
        if min(bf16) > _HOPELESS * min(fp32):
            break
    return "bf16" if min(fp32) > _BF16_MIN_SPEEDUP * min(bf16) else "fp32"


def bulk_seconds(device: torch.device, precision: str, runs: int) -> list[float]:
    """How long a layer of the network's bulk takes, forward and backward, in each of so many runs.

    The bulk is eight layers of 128 channels at 7x7.
    """
    x = torch.ones(16, 128, 7, 7, device=device, dtype=torch.float32)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.ones(128, 128, 3, 3, device=device, dtype=torch.float32, requires_grad=True)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        with torch.enable_grad(), autocast(device, precision):
            y = F.conv2d(x, weight, padding=1)
        torch.autograd.grad(y.float().sum(), (x, weight))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds
