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
from .learners import LearnsLevels, LearnsVelocity, product_type
from .optim import Weights


class Run:
    """A copy of ``pretrained_model`` that learns ``drawings`` (n, 1, 28, 28) on ``device``.

    Args:
        thread: draws the next batches while these are learnt.
    """

    def __init__(
        self,
        device: torch.device,
        pretrained_model: nn.Module,
        drawings: Tensor,
        recipe: Recipe,
        thread: Executor | None = None,
    ) -> None:
        self._thread = thread
        self._ahead: Future[Batch] | None = None  # batches that the thread draws
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
            self._ahead = self._thread.submit(self.draw) if self._thread else None
            self._left = len(self._drawn.x)
        self._left -= 1
        return Batch(*(part[-1 - self._left] for part in self._drawn))

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What a step lowers, and the flow loss, which it reports: means over the batch."""
        objective, flow_loss = self._learner.losses(batch, self._c)
        return objective, flow_loss

    def finished(self) -> nn.Module:
        """The adapted network, where the pretrained one was, in evaluation mode."""
        self.weights.finish()
        if self.recipe.lora_rank:
            merge_lora(self._model)
        adapted: nn.Module = self._learner.model
        for parameter in adapted.parameters():
            parameter.requires_grad_(True)
        return adapted.to(self._home, self._dtype).eval()
