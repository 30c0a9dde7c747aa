"""`finetune_model`: adapt a pretrained network to a new class from a few drawings."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .augment import Augmenter
from .bank import BANK_SIZE, ImageBank
from .flat import FlatParameters
from .flow import VelocityModel, image_losses, stratified_times
from .fused import FusedUNet, can_fuse
from .layers import add_class, add_lora, embedding_of, freeze_all_but, merge_lora, trainable
from .levels import grey_levels
from .posterior import Features, LevelPosterior, last_features
from .precision import (
    autocast,
    channels_last,
    is_gpu_failure,
    resolve_precision,
    standard_settings,
    training_device,
)
from .recipe import Recipe
from .threads import fastest_threads

IMAGE_SHAPE = (1, 28, 28)
# The clock has a say in the schedule only after this share of the deadline.  Without it
# the slow first steps of every run would, and two runs of one seed would differ.
_CLOCK_GRACE = 0.1
# A step may take this much longer than the slowest so far without passing the deadline.
_STEP_MARGIN = 1.5
# Drawing 256 images takes hardly longer than drawing 32.
_DRAWN_AT_ONCE = 256
_LEVEL_SAMPLES = 512  # augmented drawings in which the levels are counted


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
    steps, but always ends its schedule, in time.  When the deadline is far, the result
    depends on the recipe, the drawings, the machine and its threads alone.

    Args:
        on_step: called after each step; a true answer ends the run there.

    Raises:
        AdaptationError: the loss is not finite.
    """
    start = time.perf_counter()
    device = training_device(next(pretrained_model.parameters()).device)
    try:
        with standard_settings(device), fastest_threads(device):
            return _adapt_on(device, start, pretrained_model, drawings, recipe, on_step)
    except RuntimeError as error:
        if device.type == "cpu" or isinstance(error, AdaptationError) or not is_gpu_failure(error):
            raise
    with suppress(RuntimeError):  # of a device that is out of order
        torch.cuda.empty_cache()
    device = torch.device("cpu")
    with standard_settings(device), fastest_threads(device):
        return _adapt_on(device, start, pretrained_model, drawings, recipe, on_step)


def _adapt_on(
    device: torch.device,
    start: float,
    pretrained_model: nn.Module,
    drawings: Tensor,
    recipe: Recipe,
    on_step: Callable[[Progress], bool | None] | None,
) -> Adapted:
    """The run itself; ``start`` is when the call began, by `time.perf_counter`."""
    weight = next(pretrained_model.parameters())
    home, dtype = weight.device, weight.dtype
    model = channels_last(copy.deepcopy(pretrained_model), device).train()
    # Of the new class's own stream, so that nothing depends on the global one.
    generator = torch.Generator(device).manual_seed(recipe.seed)
    drawings = drawings.to(device)
    precision = resolve_precision(recipe.precision, device)
    label = embedding_of(model).num_embeddings
    add_class(model, _first_embedding(model, drawings, recipe, generator))
    freeze_all_but(model, recipe.train_groups)
    if recipe.lora_rank:
        add_lora(model, recipe.lora_groups, recipe.lora_rank, recipe.lora_scale, generator)

    augment = Augmenter(drawings, recipe, generator)
    c = torch.full((recipe.batch_size,), label, device=device)
    learner: _LearnsVelocity | _LearnsLevels
    if recipe.output == "velocity":
        learner = _LearnsVelocity(model, device, precision)
    else:
        learner = _LearnsLevels(model, device, precision, augment, label, recipe)
    batches = _batches(augment, recipe, generator, learner.targets)
    weights = _Weights(model, learner.head, recipe, precision)
    clock = _Clock(start, recipe.steps, recipe.deadline_s)
    stopped = False
    while clock.share < 1 and not stopped:
        x, t, targets = next(batches)
        e = torch.randn(x.shape, generator=generator, device=device)
        objective, loss = learner.losses(x, targets, e, t, c)
        share = clock.share
        clock.tick()
        weights.step(objective, share, clock.share - share)
        value = loss.item()
        if not math.isfinite(value):
            raise AdaptationError(
                f"loss is {value} at step {clock.step} of {recipe.steps}; "
                f"lower the learning rate ({recipe.lr:g}) or clip the gradient"
            )
        if on_step is not None:
            stopped = bool(on_step(Progress(clock.step, clock.share, value, clock.elapsed_s)))
    weights.finish()
    if recipe.lora_rank:
        merge_lora(model)
    adapted = learner.finished()
    for parameter in adapted.parameters():
        parameter.requires_grad_(True)
    return Adapted(
        model=adapted.to(home, dtype).eval(),
        steps=clock.step,
        seconds=time.perf_counter() - start,
        stopped=stopped and clock.share < 1,
    )


class _LearnsVelocity:
    """Trains the network's own output."""

    head: tuple[nn.Parameter, ...] = ()

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        self.model = model
        self._velocity = _velocity_model(model, device, precision)

    def targets(self, x: Tensor) -> Tensor:
        """What else there is to learn of images x (n, 1, 28, 28): nothing."""
        return x.new_zeros(len(x))

    def losses(
        self, x: Tensor, targets: Tensor, e: Tensor, t: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is lowered and the flow loss, both means over the batch."""
        loss = image_losses(self._velocity, x, e, t, c).mean()
        return loss, loss.detach()

    def finished(self) -> nn.Module:
        """What has learnt."""
        return self.model


class _LearnsLevels:
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
        self._bank: list[Tensor] = []
        self._n_learnt = 0

    def targets(self, x: Tensor) -> Tensor:
        """The levels of images x (n, 1, 28, 28), (n, 28, 28)."""
        return self._levels.nearest(x)

    def losses(
        self, x: Tensor, targets: Tensor, e: Tensor, t: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is lowered and the flow loss, both means over the batch."""
        # The bank speaks at noise, so its images are those for noise; as many come as are learnt,
        # so a slow machine makes fewer.
        self._n_learnt += len(x)
        n_banked = min(self._n_learnt, BANK_SIZE) if self._bank_limit else 0
        while len(self._bank) * _DRAWN_AT_ONCE < n_banked:
            self._bank.append(self._augment(_DRAWN_AT_ONCE))
        losses, entropies = self.model.losses(self._features, targets, x, e, t, c)
        loss = losses.mean()
        return loss + self._weight * entropies.mean(), loss.detach()

    def finished(self) -> nn.Module:
        """What has learnt, with the bank beside it."""
        if self._bank_limit:
            self.model.bank = ImageBank(torch.cat(self._bank), self._bank_limit)
        return self.model


def _velocity_model(model: nn.Module, device: torch.device, precision: str) -> VelocityModel:
    """``model`` as it is called in training: where it is, and in which precision, fastest."""
    if device.type == "cpu" and can_fuse(model):
        return FusedUNet(model, _product_type(precision))

    def call(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        with autocast(device, precision):
            velocity: Tensor = model(x_t, t, c)
        return velocity

    return call


def _feature_model(model: nn.Module, device: torch.device, precision: str) -> Features:
    """The same of what the model's last convolution is given."""
    if device.type == "cpu" and can_fuse(model):
        return FusedUNet(model, _product_type(precision)).features

    def call(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        with autocast(device, precision):
            return last_features(model, x_t, t, c)

    return call


def _product_type(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _batches(
    augment: Augmenter,
    recipe: Recipe,
    generator: torch.Generator,
    targets: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Augmented drawings without end, the times that they are for, and their ``targets``.

    Of B each, (B, 1, 28, 28), (B, 1, 1, 1) and (B, ...).
    """
    b = recipe.batch_size
    while True:
        drawn = [_draw_times(recipe, generator) for _ in range(max(1, _DRAWN_AT_ONCE // b))]
        times = torch.cat(drawn)
        # In parts: memory grows with how many are drawn at once.
        x = torch.cat([augment(len(part), part) for part in times.split(_DRAWN_AT_ONCE)])
        parts = (x, times[:, None, None, None], targets(x))
        yield from zip(*(part.split(b) for part in parts), strict=True)


class _Clock:
    """The share of the schedule that is done, by steps or by time, whichever is further."""

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

    def tick(self) -> None:
        """One more step begins to update the weights."""
        now = self.elapsed_s
        self._slowest_step_s = max(self._slowest_step_s, now - self._last)
        self._last = now
        self.step += 1
        # The step after this one must end in time too, or this one is the last.
        usable_s = self._deadline_s - _STEP_MARGIN * self._slowest_step_s
        grace_s = _CLOCK_GRACE * usable_s
        by_time = (now - grace_s) / (usable_s - grace_s) if usable_s > 0 else 1.0
        self.share = min(1.0, max(self.share, self.step / self._n_steps, by_time))


class _Weights:
    """The trained parameters, those of a head among them, with everything that moves them."""

    def __init__(
        self, model: nn.Module, head: Sequence[nn.Parameter], recipe: Recipe, precision: str
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
        self.flat = FlatParameters(groups, _product_type(precision))
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
        moved: list[dict[str, Any]] = [
            {"params": [group], "factor": factor, "weight_decay": decay}
            for group, factor, decay in zip(self.flat.groups, factors, decays, strict=True)
            if len(group)
        ]
        self.optimizer = _adamw(moved, recipe)
        if recipe.ema_half_life:
            self.average = self.flat.values.clone()

    def step(self, loss: Tensor, share: float, advance: float) -> None:
        """Move the weights down the gradient at ``share`` of the schedule.

        ``advance`` is the share of the schedule that this step covers.
        """
        r = self.recipe
        loss.backward()
        self.flat.take_gradients()
        if r.clip_norm:
            for gradient in self.clipped:
                # As `clip_grad_norm_` does.
                gradient.mul_((r.clip_norm / (gradient.norm() + 1e-6)).clamp(max=1))
        lr = r.lr * lr_factor(r, share, advance)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimizer.step()
        with torch.no_grad():
            for weight, anchor in zip(self.anchored, self.anchors, strict=True):
                weight.lerp_(anchor, min(1.0, lr * r.l2_sp))
            self.flat.show_values()
            if r.ema_half_life:
                keep = 0.5 ** (advance / r.ema_half_life)
                self.average.lerp_(self.flat.values, 1 - keep)

    def finish(self) -> None:
        """Put the averaged weights into the model, whose parameters are its own again."""
        if self.recipe.ema_half_life:
            self.flat.values.copy_(self.average)
        self.flat.release()


def _adamw(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW in one fused kernel where this torch has one for this device."""
    options: dict[str, Any] = {"lr": recipe.lr, "betas": (0.9, recipe.beta2)}
    try:
        # Of copies: the optimizer writes into its groups, before it finds that it can't be.
        return torch.optim.AdamW([dict(g) for g in groups], fused=True, **options)
    except RuntimeError:  # on CPUs before torch 2.4
        return torch.optim.AdamW(groups, **options)


def lr_factor(recipe: Recipe, share: float, advance: float = 0.0) -> float:
    """Factor of the learning rate for a step from ``share`` to ``share + advance``, in [0, 1]."""
    if share + advance < recipe.warmup:
        return (share + advance) / recipe.warmup
    done = (share - recipe.warmup) / (1 - recipe.warmup)
    done = min(max(done, 0.0), 1.0)
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if recipe.schedule == "linear" else 1.0


def _draw_times(recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Times for one batch, (B,) in [0, 1)."""
    n = recipe.batch_size
    if recipe.time_sampling == "uniform":
        return torch.rand(n, generator=generator, device=generator.device)
    u = stratified_times(n, generator)
    if recipe.time_sampling == "stratified":
        return u
    # The quantile function of a normal, then the logistic: stratified logit-normal times
    # (Esser et al. 2024, section 3.1).
    normal = torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))
    return torch.sigmoid(recipe.logit_mean + recipe.logit_std * normal).clamp(max=1 - 2**-24)


def _first_embedding(
    model: nn.Module, drawings: Tensor, recipe: Recipe, generator: torch.Generator
) -> Tensor:
    """The start of the new class's embedding, (16,), from those of the digits."""
    digits = embedding_of(model).weight.detach()
    if recipe.embedding_init == "mean":
        return digits.mean(0)
    if recipe.embedding_init == "zeros":
        return torch.zeros_like(digits[0])
    if recipe.embedding_init == "random":
        return torch.randn(digits.shape[1], generator=generator, device=digits.device)
    return digits[_nearest_class(model, drawings, generator)]


@torch.no_grad()
def _nearest_class(model: nn.Module, drawings: Tensor, generator: torch.Generator) -> int:
    """The class under which the pretrained network has the lowest loss on the drawings."""
    x = drawings.repeat(4, 1, 1, 1)  # four times and noises for each
    t = stratified_times(len(x), generator)[:, None, None, None]
    e = torch.randn(x.shape, generator=generator, device=x.device)
    losses = [
        image_losses(model, x, e, t, torch.full((len(x),), c, device=x.device)).mean()
        for c in range(embedding_of(model).num_embeddings)
    ]
    return int(torch.stack(losses).argmin())
