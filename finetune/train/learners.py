"""What a step lowers: the loss of the network's own output, or of a posterior over levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..augment.mix import Augmenter
from ..flow import VelocityModel, image_losses
from ..machine.device import autocast
from ..model.fused_unet import FusedUNet, can_fuse
from ..predict.bank import BANK_SIZE, ImageBank
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
