"""One adaptation under way: what its steps learn from, what a step does, and what comes of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..augment.mix import Augmenter
from ..flow import image_losses, stratified_times
from ..machine.device import channels_last, resolve_precision
from ..model.groups import add_class, add_lora, embedding_of, freeze_all_but, merge_lora
from ..recipe import Recipe
from .batches import Batch, draw_batches
from .learners import LearnsLevels, LearnsVelocity, product_type
from .optim import Weights

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
        if recipe.lora_rank:
            add_lora(model, recipe.lora_groups, recipe.lora_rank, recipe.lora_scale, generator)

        if augment is None:
            augment = Augmenter(drawings, recipe, generator)
        self._augment = augment = augment.with_generator(generator)
        self._c = torch.full((recipe.batch_size,), label, device=device)
        self._learner: LearnsVelocity | LearnsLevels
        if recipe.output == "velocity":
            self._learner = LearnsVelocity(model, device, precision)
        else:
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
        if self.recipe.lora_rank:
            merge_lora(self._model)
        adapted = self._learner.finished()
        for parameter in adapted.parameters():
            parameter.requires_grad_(True)
        return adapted.to(self._home, self._dtype).eval()


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
