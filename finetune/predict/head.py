"""What turns a network's last features into logits of each pixel's grey levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LevelHead(nn.Module):
    """A 3x3 convolution and, beside it, two with a ReLU between; all logits start at zero.

    Which level a pixel has is a question about the shape of an edge around it, more than a sum
    over features can answer; at little noise the second path tells it better.

    Args:
        last: the convolution in whose place it is.
        n_levels: K.
        n_hidden: channels between the two convolutions; 0: there is no second path.
        generator: of the second path's start.
    """

    def __init__(
        self, last: nn.Conv2d, n_levels: int, n_hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        device = last.weight.device
        self.direct = _convolution(last.in_channels, n_levels, device)
        self.n_hidden = n_hidden
        if n_hidden:
            self.hidden = _convolution(last.in_channels, n_hidden, device)
            self.outer = _convolution(n_hidden, n_levels, device)
            # He et al., "Delving Deep into Rectifiers" (2015), section 2.2.
            scale = math.sqrt(2 / (9 * last.in_channels))
            nn.init.normal_(self.hidden.weight, 0.0, scale, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K, 28, 28) of features (B, C, 28, 28)."""
        logits: Tensor = self.direct(features)
        if self.n_hidden:
            logits = logits + self.outer(self.hidden(features).relu_())
        return logits


def _convolution(n_in: int, n_out: int, device: torch.device) -> nn.Conv2d:
    """All zeros, without an initialisation that would draw from the process's random numbers."""
    conv: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, n_in, n_out, 3, padding=1, device=device)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv
