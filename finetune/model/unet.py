"""The course's network: a small class-conditional U-Net that predicts a velocity.

The names of its parameters are a format: checkpoints of the course carry them, so
they can't be changed here.  Everything else in this project touches a network only
through ``class_embedding``, ``n_classes`` and ``model(x_t, t, c)``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_SIZE = 28
CLASS_CHANNELS = 16
NORM_GROUPS = 8


class ConditionalDiffusionUNet(nn.Module):
    """Velocity network ``v(x_t, t, c)`` for 1x28x28 images in [0, 1].

    Args:
        base_dim: channels at full resolution; each down block doubles them.
        n_classes: rows of the class embedding.
        n_updown_blocks: how many times the image is halved (and doubled again).
        n_middle_blocks: residual blocks at the lowest resolution.

    The sizes that the challenge uses, ``(32, 10, 2, 8)``, are the defaults and have
    1,480,721 parameters.
    """

    def __init__(
        self,
        base_dim: int = 32,
        n_classes: int = 10,
        n_updown_blocks: int = 2,
        n_middle_blocks: int = 8,
    ) -> None:
        super().__init__()
        self.n_channels_img = 1
        self.n_classes = n_classes
        self.class_embedding = nn.Embedding(n_classes, CLASS_CHANNELS)

        n_in = self.n_channels_img + CLASS_CHANNELS + 1  # image, class, time
        widths = [base_dim * 2**i for i in range(n_updown_blocks + 1)]
        self.conv_in = _conv_norm_relu(nn.Conv2d(n_in, widths[0], 3, padding=1))
        self.down_blocks = nn.ModuleList(
            _conv_norm_relu(nn.Conv2d(narrow, wide, 3, stride=2, padding=1))
            for narrow, wide in pairwise(widths)
        )
        self.middle = nn.ModuleList(
            _conv_norm_relu(nn.Conv2d(widths[-1], widths[-1], 3, padding=1))
            for _ in range(n_middle_blocks)
        )
        # Stored in the order of the down blocks (block i undoes block i), run last to first.
        self.up_blocks = nn.ModuleList(_up_block(wide, narrow) for narrow, wide in pairwise(widths))
        self.conv_out = _ImageHead(2 * widths[0], self.n_channels_img + CLASS_CHANNELS)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """Predict the velocity at ``x_t``.

        Args:
            x_t: noisy images, (B, 1, 28, 28).
            t: times in [0, 1), (B, 1, 1, 1); 0 is data, 1 is noise.
            c: class labels, (B,), long.

        Returns:
            Velocity, (B, 1, 28, 28).
        """
        b, _, h, w = x_t.shape
        c_map = self.class_embedding(c)[:, :, None, None].expand(b, CLASS_CHANNELS, h, w)
        t_map = t.reshape(b, 1, 1, 1).expand(b, 1, h, w)
        x = torch.cat([x_t, c_map.to(x_t.dtype), t_map.to(x_t.dtype)], dim=1)  # (B, 18, 28, 28)

        stem = x = self.conv_in(x)  # (B, 32, 28, 28)
        skips = []
        for down in self.down_blocks:
            x = down(x)  # (B, 64, 14, 14), (B, 128, 7, 7)
            skips.append(x)
        for block in self.middle:
            x = x + block(x)  # (B, 128, 7, 7)
        for up, skip in zip(reversed(self.up_blocks), reversed(skips), strict=True):
            x = up(torch.cat([x, skip], dim=1))  # (B, 64, 14, 14), (B, 32, 28, 28)
        out: Tensor = self.conv_out(torch.cat([x, stem], dim=1))
        return out


class _ImageHead(nn.Conv2d):
    """The last convolution: channels for image and class, of which only the image's is used.

    Only that one is computed: the others would cost every training step time.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return F.conv2d(x, self.weight[:1], self.bias[:1], padding=self.padding)


def _conv_norm_relu(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, conv.out_channels), nn.ReLU())


def _up_block(wide: int, narrow: int) -> nn.Sequential:
    """Doubles the resolution of concat(x, skip), each ``wide`` channels, to ``narrow``."""
    return nn.Sequential(
        nn.ConvTranspose2d(2 * wide, narrow, 3, stride=2, padding=1, output_padding=1),
        nn.GroupNorm(NORM_GROUPS, narrow),
        nn.ReLU(),
        nn.Conv2d(narrow, narrow, 1),
        nn.GroupNorm(NORM_GROUPS, narrow),
        nn.ReLU(),
    )
