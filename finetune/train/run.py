"""An adaptation in progress: its batches, the gradients of a step, and its result."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from ..augment.mix import Augmenter
from ..flow import logit_normal_times
from ..model.groups import add_class, add_lora, freeze_all_but, merge_lora
from ..model.norms import speed_up_norms
from ..predict.bank import ImageBank
from ..predict.levels import grey_levels
from ..predict.posterior import LevelPosterior
from ..recipe import GROUPS, Recipe
from .learners import LearnsVelocity
from .optim import Weights

_LEVEL_SAMPLES = 512  # augmented drawings to count the levels in
# On a CPU drawing 256 images takes hardly longer than 32; a GPU draws 2048 in the same time.
_DRAWN_AT_ONCE, _DRAWN_AT_ONCE_ON_GPU = 256, 2048

# Augmented drawings x (B, 1, 28, 28), times t (B, 1, 1, 1), targets, and noises e as x; several
# batches have one more axis in front.
Batch = tuple[Tensor, ...]


class Run:
    """A copy of ``pretrained_model`` that learns ``drawings`` (n, 1, 28, 28) on ``device``.

    Args:
        threads: a pool of three threads for a CPU: one draws the next batches, two compute half of
            each step.  Without it the caller's thread does both, with the same result.
    """

    def __init__(
        self,
        device: torch.device,
        pretrained_model: nn.Module,
        drawings: Tensor,
        recipe: Recipe,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        self.recipe = recipe
        self._threads = threads
        self._n_parts = 2 if device.type == "cpu" else 1  # of a batch, for any number of cores
        weight = next(pretrained_model.parameters())
        self._home, self._dtype = weight.device, weight.dtype
        model = copy.deepcopy(pretrained_model).train()
        model.to(device, torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]
        speed_up_norms(model)
        # The call's own random numbers, so that nothing depends on the global ones.
        self._generator = generator = torch.Generator(device).manual_seed(recipe.seed)
        label = add_class(model)
        model.requires_grad_(True)
        if recipe.train_groups != GROUPS:
            freeze_all_but(model, recipe.train_groups)
        if recipe.lora_rank:
            add_lora(model, recipe.lora_groups, recipe.lora_rank, recipe.lora_scale, generator)
        self._augment = Augmenter(drawings.to(device), recipe, generator)
        self._learner: Any = (
            LearnsVelocity(model, recipe)
            if recipe.output == "velocity"
            else _level_posterior(model, self._augment, label, recipe)
        )
        self.weights = Weights(model, self._learner.head, recipe)
        self._c = torch.full((recipe.batch_size,), label, device=device)
        self.batches = self._draw_on()

    def draw(self) -> Batch:
        """Draw the next batches, as many together as is efficient."""
        r, g = self.recipe, self._generator
        at_once = _DRAWN_AT_ONCE_ON_GPU if g.device.type == "cuda" else _DRAWN_AT_ONCE
        s, b = max(1, at_once // r.batch_size), r.batch_size
        t = torch.cat([logit_normal_times(b, r.logit_mean, r.logit_std, g) for _ in range(s)])
        x = self._augment(s * b, t)
        e = torch.randn(x.shape, generator=g, device=x.device)
        parts = (x, t[:, None, None, None], self._learner.targets(x), e)
        return tuple(part.unflatten(0, (s, b)) for part in parts)

    def _draw_on(self) -> Iterator[Batch]:
        """Endless batches; a thread draws the next ones while the current ones are used."""
        ahead = None
        while True:
            drawn = ahead.result() if ahead else self.draw()
            ahead = self._threads.submit(self.draw) if self._threads else None
            yield from zip(*drawn, strict=True)

    def gradients(self, batch: Batch) -> tuple[list[tuple[Tensor, ...]], Tensor]:
        """The gradients of each part of a batch, and the batch's flow loss."""
        parts = zip(*(column.chunk(self._n_parts) for column in batch), strict=True)
        on_parts = self._threads.map if self._threads else map
        gradients, losses = zip(*on_parts(self._part_gradients, parts), strict=True)
        return list(gradients), torch.stack(losses).sum()

    def _part_gradients(self, part: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        """The part's share of the batch's gradients and flow loss."""
        n = len(part[0])
        objective, flow_loss = self._learner.losses(*part, self._c[:n])
        share = n / len(self._c)
        parameters = self.weights.parameters
        gradients = torch.autograd.grad(objective * share, parameters, materialize_grads=True)
        return gradients, flow_loss * share

    def finished(self) -> nn.Module:
        """The adapted network on the pretrained one's device, in evaluation mode."""
        self.weights.optimizer.zero_grad()
        if self.recipe.lora_rank:
            merge_lora(self._learner.network)
        network: nn.Module = (
            self._learner.network if self.recipe.output == "velocity" else self._learner
        )
        return network.requires_grad_(True).to(self._home, self._dtype).eval()


def _level_posterior(
    network: nn.Module, augment: Augmenter, label: int, recipe: Recipe
) -> LevelPosterior:
    """An untrained posterior, with levels and a bank of augmented drawings."""
    device = augment.drawings.device
    times = torch.arange(_LEVEL_SAMPLES, device=device) / _LEVEL_SAMPLES
    levels = grey_levels(augment.drawings, augment(_LEVEL_SAMPLES, times), augment.operator)
    # Bank and head have random numbers of their own, so batches are the same without them.
    of_bank = copy.copy(augment)
    of_bank.generator = torch.Generator(device).manual_seed(recipe.seed + 1)
    bank, n = None, min(recipe.bank_images, recipe.steps * recipe.batch_size)
    if n:  # no more images than training draws itself
        parts = [of_bank(len(part)) for part in torch.arange(n).split(_DRAWN_AT_ONCE)]
        bank = ImageBank(torch.cat(parts), recipe)
    start = torch.Generator(device).manual_seed(recipe.seed + 2)
    network.conv_out.requires_grad_(False)  # the head replaces it
    return LevelPosterior(network, levels, label, recipe, start, bank)
