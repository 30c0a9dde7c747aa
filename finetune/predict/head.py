"""What turns a network's last features into logits of each pixel's grey levels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LevelHead(nn.Module):
    """A 3x3 convolution and, beside it, two with a ReLU between; all logits start at zero.

    Which level a pixel has is a question about the shape of an edge around it, more than a sum
    over features can answer; at little noise the second path tells it better.

    Args:
        n_in: channels of the features.
        n_levels: K.
        n_hidden: channels between the two convolutions; 0: there is no second path.
        generator: of the second path's start; without it, torch's own.
    """

    def __init__(
        self,
        n_in: int,
        n_levels: int,
        n_hidden: int,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.direct = _convolution(n_in, n_levels, device)
        self.n_hidden = n_hidden
        if n_hidden:
            self.hidden = _convolution(n_in, n_hidden, device)
            self.outer = _convolution(n_hidden, n_levels, device)
            # He et al., "Delving Deep into Rectifiers" (2015), section 2.2.
            scale = math.sqrt(2 / (9 * n_in))
            nn.init.normal_(self.hidden.weight, 0.0, scale, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """(B, K, 28, 28) float32 from features (B, C, 28, 28) of any float type."""
        logits = _apply(self.direct, features)
        if self.n_hidden:
            logits = logits + _apply(self.outer, _apply(self.hidden, features).relu_())
        # NCHW: sums over levels are faster than channels_last here.
        return logits.float().contiguous()


def _convolution(n_in: int, n_out: int, device: torch.device) -> nn.Conv2d:
    # Without its own initialisation, which would draw from the process's random numbers.
    convolution: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, n_in, n_out, 3, padding=1, device=device)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution


def _apply(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """In the type of ``x``, whichever the weights are kept in."""
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    return F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=convolution.padding)
