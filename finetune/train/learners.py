"""The training loss of a network that predicts a velocity."""

from __future__ import annotations

from torch import Tensor, nn

from ..flow import image_losses
from ..machine.device import autocast
from ..recipe import Recipe


class LearnsVelocity:
    """Trains the network's own output, as `LevelPosterior` trains a posterior."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.head = nn.Identity()
        self.network = model
        self._precision = recipe.precision

    def targets(self, x: Tensor) -> Tensor:
        """Further training targets of images x (n, 1, 28, 28): none."""
        return x.new_zeros(len(x))

    def losses(
        self, x: Tensor, t: Tensor, targets: Tensor, e: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The training loss and the flow loss, both means over the batch of labels c (B,)."""

        def velocity(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
            with autocast(x_t.device, self._precision):
                found: Tensor = self.network(x_t, t, c)
            return found

        loss = image_losses(velocity, x, e, t, c).mean()
        return loss, loss.detach()
