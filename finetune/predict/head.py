"""A head that maps a network's last features to logits of each pixel's grey levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LevelHead(nn.Module):
    """A 3x3 convolution and a second path of two with a ReLU between; logits start at zero.

    A pixel's level depends on the shape of the edge around it, which is not linear in features.

    Args:
        last: the convolution that it replaces.
        n_levels: number of levels K.
        n_hidden: channels between the two convolutions; 0: no second path.
        generator: random numbers for the second path's initial weights.
    """

    def __init__(
        self, last: nn.Conv2d, n_levels: int, n_hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        options = {"kernel_size": 3, "padding": 1, "device": last.weight.device}
        # `skip_init`, as torch's own initialization uses the process's random numbers.
        self.direct = nn.utils.skip_init(nn.Conv2d, last.in_channels, n_levels, **options)
        self.n_hidden = n_hidden
        if n_hidden:
            self.hidden = nn.utils.skip_init(nn.Conv2d, last.in_channels, n_hidden, **options)
            self.outer = nn.utils.skip_init(nn.Conv2d, n_hidden, n_levels, **options)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        if n_hidden:
            # He et al., "Delving Deep into Rectifiers" (2015), section 2.2.
            scale = math.sqrt(2 / (9 * last.in_channels))
            nn.init.normal_(self.hidden.weight, 0.0, scale, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K, 28, 28) for features (B, C, 28, 28)."""
        logits: Tensor = self.direct(features)
        if self.n_hidden:
            logits = logits + self.outer(self.hidden(features).relu_())
        return logits
