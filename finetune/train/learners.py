"""What a step lowers: the loss of the network's own output, or of a posterior over levels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..augment.mix import Augmenter
from ..flow import image_losses
from ..machine.device import autocast
from ..predict.bank import ImageBank
from ..predict.levels import grey_levels
from ..predict.posterior import LevelPosterior
from ..recipe import Recipe

_LEVEL_SAMPLES = 512  # augmented drawings in which the levels are counted
_DRAWN_AT_ONCE = 256


class LearnsVelocity:
    """Trains the network's own output, as `LevelPosterior` trains a posterior."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.head = nn.Identity()
        self.network = model
        self._precision = recipe.precision

    def targets(self, x: Tensor) -> Tensor:
        """What else there is to learn of images x (n, 1, 28, 28): nothing."""
        return x.new_zeros(len(x))

    def losses(
        self, x: Tensor, t: Tensor, targets: Tensor, e: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is lowered and the flow loss, both means over the batch of labels c (B,)."""

        def velocity(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
            with autocast(x_t.device, self._precision):
                found: Tensor = self.network(x_t, t, c)
            return found

        loss = image_losses(velocity, x, e, t, c).mean()
        return loss, loss.detach()


def level_posterior(
    network: nn.Module, augment: Augmenter, label: int, recipe: Recipe
) -> LevelPosterior:
    """A posterior that knows nothing yet, with levels and a bank of augmented drawings."""
    device = augment.drawings.device
    times = torch.arange(_LEVEL_SAMPLES, device=device) / _LEVEL_SAMPLES
    levels = grey_levels(augment.drawings, augment(_LEVEL_SAMPLES, times), augment.operator)
    # Bank and head have numbers of their own: batches are the same with them and without.
    of_bank = copy.copy(augment)
    of_bank.generator = torch.Generator(device).manual_seed(recipe.seed + 1)
    bank, n = None, min(recipe.bank_images, recipe.steps * recipe.batch_size)
    if n:  # no more of them than training draws itself
        parts = [of_bank(len(part)) for part in torch.arange(n).split(_DRAWN_AT_ONCE)]
        bank = ImageBank(torch.cat(parts), recipe)
    start = torch.Generator(device).manual_seed(recipe.seed + 2)
    network.conv_out.requires_grad_(False)  # the head is in its place
    return LevelPosterior(network, levels, label, recipe, start, bank)
