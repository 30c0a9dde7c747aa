"""The course's network on CPUs: the same function and gradients, in fewer and cheaper operations.

Convolutions are fastest with channels last, but torch's own GroupNorm is slow there when groups
are narrow, as they are at the larger resolutions.  There a convolution, its norm and its ReLU are
one operation here, whose gradient is written out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .groups import embedding_of

# With fewer channels in a group, torch's own norm is slower than ours.
_NARROW_GROUP = 16
# With so many channels on both sides, the gradient of weights in bf16 is faster as one product.
_MANY_CHANNELS = 64
_SAME_WITHIN = 1e-3  # of the output's size; rounding leaves about 1e-6


class _Conv(NamedTuple):
    """What a convolution does beside its weights, in the order of `torch.convolution`."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


class FusedUNet:
    """Calls a network of the course's structure, whose parameters stay where they are.

    Args:
        model: with the attributes of `finetune.model.unet.ConditionalDiffusionUNet`.
        dtype: of the products and of what lies between layers; parameters stay float32.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model: Any = model
        self._dtype = dtype

    def __call__(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """The velocity, (B, 1, 28, 28) float32, as ``model(x_t, t, c)`` gives it."""
        x = self.features(x_t, t, c)
        head = self._model.conv_out  # of its channels only the image's is used
        weight, bias = head.weight[:1].to(x.dtype), head.bias[:1].to(x.dtype)
        return F.conv2d(x, weight, bias, head.stride, head.padding).float()

    def features(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """What the last convolution is given, (B, 64, 28, 28) in the products' type."""
        model = self._model
        b, _, h, w = x_t.shape
        c_map = model.class_embedding(c)[:, None, None, :].expand(b, h, w, -1)
        planes = [x_t.permute(0, 2, 3, 1), c_map, t.expand(b, h, w, 1)]
        x = torch.cat(planes, dim=-1).to(self._dtype).permute(0, 3, 1, 2)  # (B, 18, 28, 28)

        stem = x = _block(model.conv_in, x)  # (B, 32, 28, 28)
        skips = []
        for down in model.down_blocks:
            x = _block(down, x)  # (B, 64, 14, 14), (B, 128, 7, 7)
            skips.append(x)
        for middle in model.middle:
            x = x + _block(middle, x)  # (B, 128, 7, 7)
        for up, skip in zip(reversed(model.up_blocks), reversed(skips), strict=True):
            x = _block(up, torch.cat([x, skip], dim=1))  # (B, 64, 14, 14), (B, 32, 28, 28)
        return torch.cat([x, stem], dim=1)


@torch.no_grad()
def can_fuse(model: nn.Module) -> bool:
    """Whether `FusedUNet` computes what ``model``, in float32 on the CPU, does.

    Tried on two images: whoever wrote the model, it either agrees or is called as it is.
    """
    x_t = torch.linspace(-1.5, 1.5, 2 * 28 * 28).view(2, 1, 28, 28)
    t = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1)
    with suppress(AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        c = torch.tensor([0, embedding_of(model).num_embeddings - 1])
        fused = FusedUNet(model, torch.float32)(x_t, t, c)
        expected = model(x_t, t, c)
        error = (fused - expected).abs().max()
        return bool(error <= _SAME_WITHIN * expected.abs().max())
    return False


def _block(layers: Any, x: Tensor) -> Tensor:
    """Convolution, GroupNorm and ReLU, once or several times."""
    for conv, norm in zip(layers[0::3], layers[1::3], strict=True):
        how = _Conv(
            conv.stride,
            conv.padding,
            conv.dilation,
            isinstance(conv, nn.ConvTranspose2d),
            conv.output_padding,
            conv.groups,
        )
        if norm.num_channels // norm.num_groups < _NARROW_GROUP:
            x = _fused(
                x, conv.weight, conv.bias, norm.weight, norm.bias, how, norm.num_groups, norm.eps
            )
        else:
            y = _convolve(x, conv.weight.to(x.dtype), conv.bias.to(x.dtype), how)
            # In place: the norm's gradient needs its input, not its output.
            x = F.group_norm(y, norm.num_groups, norm.weight, norm.bias, norm.eps).relu_()
    return x


class _ConvNormReLU(torch.autograd.Function):
    """z = relu(a y + s) with y = conv(x): a norm is one factor and one shift for each channel.

    With m and r a group's mean and inverse deviation over its n numbers, and the norm's gain g
    and offset o: a = g r and s = o - a m.  For d the gradient of a y + s, that of y is
    (differentiate Wu and He, "Group Normalization" (2018), equations 1 and 2)

        a d + p y + q,   p = -(r^2 / n) sum of g d (y - m) r,   q = -(r / n) sum of g d - p m,

    both sums over the group.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gain: Tensor,
        offset: Tensor,
        how: _Conv,
        n_groups: int,
        eps: float,
    ) -> Tensor:
        ctx.weight_dtype = weight.dtype
        weight = weight.to(x.dtype)
        y = torch.convolution(x, weight, bias.to(x.dtype), *how)
        groups = (len(y), n_groups, -1)  # (B, G, C / G), as everything small here
        n = y[0].numel() // n_groups
        y_sum = _sum_over_pixels(y).view(groups)
        mean = y_sum.sum(-1, keepdim=True) / n
        square = _sum_over_pixels(y * y).view(groups).sum(-1, keepdim=True) / n
        rstd = (square - mean * mean).clamp(min=0).add(eps).rsqrt()
        a = gain.view(n_groups, -1) * rstd
        shift = offset.view(n_groups, -1) - a * mean
        z = torch.addcmul(_map(shift, y), y, _map(a, y)).relu_()
        ctx.save_for_backward(x, weight, y, z, gain, mean, rstd, y_sum)
        ctx.how = how
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Any:
        x, weight, y, z, gain, mean, rstd, y_sum = ctx.saved_tensors
        needs = ctx.needs_input_grad
        n_pixels = y[0, 0].numel()
        n = n_pixels * y_sum.shape[-1]
        gain = gain.view(y_sum.shape[1:])
        d = torch.ops.aten.threshold_backward(dz, z, 0)
        d_sum = _sum_over_pixels(d).view_as(y_sum)
        # Sum of d times the normalised y.
        dy_sum = (_sum_over_pixels(d * y).view_as(y_sum) - d_sum * mean) * rstd
        a = gain * rstd
        p = -(rstd * rstd / n) * (gain * dy_sum).sum(-1, keepdim=True)
        q = -(rstd / n) * (gain * d_sum).sum(-1, keepdim=True) - p * mean
        # The bias's gradient is the sum of a d + p y + q: no pass over the pixels is needed.
        d_bias = (a * d_sum + p * y_sum + q * n_pixels).sum(0).flatten() if needs[2] else None
        d_x = d_weight = None
        if needs[0] or needs[1]:
            dy = torch.addcmul(_map(q.expand_as(a), y), y, _map(p.expand_as(a), y))
            dy.addcmul_(d, _map(a, y))
            if needs[0]:
                d_x = _image_gradient(ctx.how, dy, x, weight)
            if needs[1]:
                d_weight = _weight_gradient(ctx.how, dy, x, weight).to(ctx.weight_dtype)
        d_gain, d_offset = dy_sum.sum(0).flatten(), d_sum.sum(0).flatten()
        return d_x, d_weight, d_bias, d_gain, d_offset, None, None, None


_fused: Callable[..., Tensor] = _ConvNormReLU.apply


class _Convolution(torch.autograd.Function):
    """A convolution whose gradients are computed one after the other: faster than both at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, how: _Conv) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return torch.convolution(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            _image_gradient(ctx.how, dy, x, weight) if needs[0] else None,
            _weight_gradient(ctx.how, dy, x, weight) if needs[1] else None,
            _sum_over_pixels(dy).sum(0).to(dy.dtype) if needs[2] else None,
            None,
        )


_convolve: Callable[..., Tensor] = _Convolution.apply


def _image_gradient(how: _Conv, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    wanted = [True, False, False]
    found: Tensor = torch.ops.aten.convolution_backward(dy, x, weight, None, *how, wanted)[0]
    return found


def _weight_gradient(how: _Conv, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    if dy.dtype == torch.bfloat16 and min(weight.shape[:2]) >= _MANY_CHANNELS:
        return _weight_gradient_as_product(how, dy, x, weight)
    wanted = [False, True, False]
    found: Tensor = torch.ops.aten.convolution_backward(dy, x, weight, None, *how, wanted)[1]
    return found


def _weight_gradient_as_product(how: _Conv, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The same as one matrix product, for kernels of odd sizes and no dilation.

    Each place of the smaller map (the output's, or the input's of a transposed convolution) sees
    a patch of the larger one.
    """
    small, large = (x, dy) if how.transposed else (dy, x)
    (b, n_large, h, w), (_, n_small, rows, columns) = large.shape, small.shape
    (k, m), (pad_y, pad_x), (step_y, step_x) = weight.shape[2:], how.padding, how.stride
    padded = large.new_zeros(b, h + 2 * pad_y, w + 2 * pad_x, n_large)
    padded[:, pad_y : pad_y + h, pad_x : pad_x + w] = large.permute(0, 2, 3, 1)
    image, row, pixel, _ = padded.stride()
    patches = padded.as_strided(  # a row of a patch lies in one piece
        (b, rows, columns, k, m * n_large), (image, step_y * row, step_x * pixel, row, 1)
    ).reshape(b * rows * columns, -1)
    product = small.permute(0, 2, 3, 1).reshape(-1, n_small).T @ patches
    return product.view(n_small, k, m, n_large).permute(0, 3, 1, 2)


def _sum_over_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C), float32 or better; it is added up in no less."""
    return x.sum((2, 3)).to(torch.promote_types(x.dtype, torch.float32))


def _map(values: Tensor, like: Tensor) -> Tensor:
    """A number for each channel, (B, G, C / G), as (B, C, 1, 1) in the type of ``like``."""
    return values.reshape(len(values), -1, 1, 1).to(like.dtype)
