"""What a step lowers: the loss of the network's own output, or of a posterior over levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..augment.mix import Augmenter
from ..flow import VelocityModel, image_losses
from ..machine.device import autocast
from ..model.fused_unet import FusedUNet, can_fuse
from ..predict.bank import ImageBank
from ..predict.levels import grey_levels
from ..predict.posterior import Features, LevelPosterior, last_features
from ..recipe import Recipe
from .batches import Batch, drawn_at_once

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

    def losses(self, batch: Batch, c: Tensor) -> tuple[Tensor, Tensor]:
        """What is lowered and the flow loss, both means over the batch of labels c (B,)."""
        loss = image_losses(self._velocity, batch.x, batch.e, batch.t, c).mean()
        return loss, loss.detach()


class LearnsLevels:
    """Trains the posterior over grey levels; see `finetune.predict.posterior`."""

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
            network,
            self._levels,
            label,
            recipe.head_hidden,
            start,
            self._draw_bank(recipe),
            product_type(precision) if device.type == "cpu" else torch.float32,
        )
        self.head = tuple(self.model.head.parameters())
        network.conv_out.requires_grad_(False)  # the head is in its place
        self._features = _feature_model(network, device, precision)
        self._weight = recipe.level_weight

    def targets(self, x: Tensor) -> Tensor:
        """The levels of images x (n, 1, 28, 28), (n, 28, 28)."""
        return self._levels.nearest(x)

    def losses(self, batch: Batch, c: Tensor) -> tuple[Tensor, Tensor]:
        """What is lowered and the flow loss, both means over the batch of labels c (B,)."""
        x, t, labels, e = batch
        losses, entropies = self.model.losses(self._features, labels, x, e, t, c)
        loss = losses.mean()
        return loss + self._weight * entropies.mean(), loss.detach()

    def _draw_bank(self, recipe: Recipe) -> ImageBank | None:
        """Augmented drawings as for t = 1, no more of them than training draws itself."""
        n = min(recipe.bank_images, recipe.steps * recipe.batch_size)
        if not n or not (recipe.bank_limit or recipe.target_limit or recipe.window_limit):
            return None
        at_once = drawn_at_once(self._augment.drawings.device)
        images = [self._augment(min(at_once, n - first)) for first in range(0, n, at_once)]
        return ImageBank(torch.cat(images), recipe)


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
