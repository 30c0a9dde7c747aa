"""One adaptation under way: what its steps learn from, what a step does, and what comes of it."""

from __future__ import annotations

import copy
from concurrent.futures import Executor, Future
from typing import Any

import torch
from torch import Tensor, nn

from ..augment.mix import Augmenter
from ..machine.device import channels_last, resolve_precision
from ..model.groups import add_class, add_lora, embedding_of, freeze_all_but, merge_lora
from ..recipe import Recipe
from .batches import Batch, draw_batches
from .flat import Gradients
from .learners import LearnsLevels, LearnsVelocity, product_type
from .optim import Weights


class Run:
    """A copy of ``pretrained_model`` that learns ``drawings`` (n, 1, 28, 28) on ``device``.

    Args:
        threads: two; one draws the next batches while these are learnt, one computes half of
            each step on a CPU.  Without them the caller does both, with the same result.
    """

    def __init__(
        self,
        device: torch.device,
        pretrained_model: nn.Module,
        drawings: Tensor,
        recipe: Recipe,
        threads: Executor | None = None,
    ) -> None:
        self._threads = threads
        self._n_parts = 2 if device.type == "cpu" else 1  # of a batch, whatever cores there are
        self._ahead: Future[Batch] | None = None  # batches that a thread draws
        weight = next(pretrained_model.parameters())
        self._home, self._dtype = weight.device, weight.dtype
        self.recipe = recipe
        self._model = model = channels_last(copy.deepcopy(pretrained_model), device).train()
        # Of the new class's own stream, so that nothing depends on the global one.
        self._generator = generator = torch.Generator(device).manual_seed(recipe.seed)
        drawings = drawings.to(device)
        precision = resolve_precision(recipe.precision, device)
        label = embedding_of(model).num_embeddings
        add_class(model, embedding_of(model).weight.detach().mean(0))
        freeze_all_but(model, recipe.train_groups)
        if recipe.lora_rank:
            add_lora(model, recipe.lora_groups, recipe.lora_rank, recipe.lora_scale, generator)

        self._augment = augment = Augmenter(drawings, recipe, generator)
        self._left = 0  # batches that are drawn and not learnt
        self._c = torch.full((recipe.batch_size,), label, device=device)
        self._learner: Any  # an annotation with both classes would export both
        if recipe.output == "velocity":
            self._learner = LearnsVelocity(model, device, precision)
        else:
            self._learner = LearnsLevels(model, device, precision, augment, label, recipe)
        self.weights = Weights(model, self._learner.head, recipe, product_type(precision))

    def draw(self) -> Batch:
        """The next batches, as many as it pays to draw together."""
        return draw_batches(self._augment, self.recipe, self._generator, self._learner.targets)

    def next_batch(self) -> Batch:
        """One batch; several are drawn at a time."""
        if not self._left:
            self._drawn = self._ahead.result() if self._ahead else self.draw()
            self._ahead = self._threads.submit(self.draw) if self._threads else None
            self._left = len(self._drawn.x)
        self._left -= 1
        return Batch(*(part[-1 - self._left] for part in self._drawn))

    def gradients(self, batch: Batch) -> tuple[list[Gradients], Tensor]:
        """Gradients of what a step lowers, of each part of the batch, and the batch's flow loss."""
        parts = [Batch(*columns) for columns in zip(*map(self._split, batch), strict=True)]
        if self._threads is None:
            found = [self._part_gradients(part) for part in parts]
        else:
            others = [self._threads.submit(self._part_gradients, part) for part in parts[1:]]
            found = [self._part_gradients(parts[0]), *(other.result() for other in others)]
        return [gradients for gradients, _ in found], torch.stack([loss for _, loss in found]).sum()

    def _split(self, column: Tensor) -> tuple[Tensor, ...]:
        return column.chunk(self._n_parts)

    def _part_gradients(self, part: Batch) -> tuple[Gradients, Tensor]:
        """The part's share in the gradients and in the flow loss of the whole batch."""
        n = len(part.x)
        objective, flow_loss = self._learner.losses(part, self._c[:n])
        share = n / len(self._c)
        parameters = self.weights.flat.parameters
        gradients = torch.autograd.grad(objective * share, parameters, allow_unused=True)
        return gradients, flow_loss * share

    def finished(self) -> nn.Module:
        """The adapted network, where the pretrained one was, in evaluation mode."""
        self.weights.finish()
        if self.recipe.lora_rank:
            merge_lora(self._model)
        adapted: nn.Module = self._learner.model
        for parameter in adapted.parameters():
            parameter.requires_grad_(True)
        return adapted.to(self._home, self._dtype).eval()
