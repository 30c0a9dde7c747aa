"""Group norms that are fast with channels last on a CPU.

Convolutions are fastest with channels last, but torch's own GroupNorm is slow there when groups
are narrow, as they are at the larger resolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# With more channels in a group, torch's own norm is as fast.
_NARROW_GROUP = 16


def speed_up_norms(model: nn.Module) -> None:
    """Let narrow group norms of ``model`` be `NarrowGroupNorm`: same parameters, same values."""
    for module in model.modules():
        if type(module) is nn.GroupNorm and module.affine:
            narrow = module.num_channels // module.num_groups < _NARROW_GROUP
            module.__class__ = NarrowGroupNorm if narrow else nn.GroupNorm


class NarrowGroupNorm(nn.GroupNorm):
    """GroupNorm by sums over pixels, on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.ndim != 4:
            return super().forward(x)
        return _group_norm(x, self.weight, self.bias, self.num_groups, self.eps)


class _GroupNorm(torch.autograd.Function):
    """y = a x + s: one factor and one shift for each channel.

    With m and r a group's mean and inverse deviation over its n numbers, and the norm's gain g
    and offset o: a = g r and s = o - a m.  For d the gradient of y, that of x is (differentiate
    Wu and He, "Group Normalization" (2018), equations 1 and 2)

        a d + p x + q,   p = -(r^2 / n) sum of g d (x - m) r,   q = -(r / n) sum of g d - p m,

    both sums over the group.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, n_groups: int, eps: float
    ) -> Tensor:
        groups = (len(x), n_groups, -1)  # (B, G, C / G), as everything small here
        n = x[0].numel() // n_groups
        mean = _sums(x).view(groups).sum(-1, keepdim=True) / n
        square = _sums(x * x).view(groups).sum(-1, keepdim=True) / n
        rstd = (square - mean * mean).clamp(min=0).add(eps).rsqrt()
        a = gain.view(n_groups, -1) * rstd
        ctx.save_for_backward(x, gain, mean, rstd)
        return torch.addcmul(_map(offset.view(n_groups, -1) - a * mean, x), x, _map(a, x))

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        x, gain, mean, rstd = ctx.saved_tensors
        gain = gain.view(mean.shape[1], -1)
        n = x[0].numel() // mean.shape[1]
        d_sum = _sums(d).view(len(x), *gain.shape)
        dx_sum = (_sums(d * x).view_as(d_sum) - d_sum * mean) * rstd  # of d times the normed x
        p = -(rstd * rstd / n) * (gain * dx_sum).sum(-1, keepdim=True)
        q = -(rstd / n) * (gain * d_sum).sum(-1, keepdim=True) - p * mean
        d_x = torch.addcmul(_map(q.expand_as(d_sum), x), x, _map(p.expand_as(d_sum), x))
        d_x.addcmul_(d, _map(gain * rstd, x))
        return d_x, dx_sum.sum(0).flatten(), d_sum.sum(0).flatten(), None, None


_group_norm: Callable[..., Tensor] = _GroupNorm.apply


def _sums(x: Tensor) -> Tensor:
    """Over the pixels, (B, C, H, W) to (B, C), float32 or better; added up in no less."""
    return x.sum((2, 3)).to(torch.promote_types(x.dtype, torch.float32))


def _map(values: Tensor, like: Tensor) -> Tensor:
    """A number for each channel, (B, G, C / G), as (B, C, 1, 1) in the type of ``like``."""
    return values.reshape(len(values), -1, 1, 1).to(like.dtype)
