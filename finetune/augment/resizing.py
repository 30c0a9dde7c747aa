"""The family of resizes that may have turned a bitmap of 105x105 into an image of 28x28.

All but "max" are linear along each axis: ``image = D bitmap D^T``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..canvas import BITMAP_SIZE, IMAGE_SIZE

# Arguments of torch's interpolation along each axis; "-corners" align the corners.
_TORCH_KERNELS: dict[str, dict[str, object]] = {
    "nearest": {"mode": "nearest"},
    "bilinear": {"mode": "bilinear"},
    "antialiased": {"mode": "bilinear", "antialias": True},
    "area": {"mode": "area"},  # adaptive average pooling: whole pixels
    "bicubic": {"mode": "bicubic", "antialias": True},
    "bilinear-corners": {"mode": "bilinear", "align_corners": True},
    "bicubic-plain": {"mode": "bicubic"},
    "bicubic-corners": {"mode": "bicubic", "align_corners": True},
}
TWO_VALUED = ("nearest", "max")  # "max": the largest value of each cell
KERNELS = (*_TORCH_KERNELS, "coverage", "max")  # "coverage": weights are covered parts of pixels
_MOST_LISTED = 2  # values are listed if a pixel depends on so many bits along each axis


class Resizing(NamedTuple):
    """One way to resize."""

    kernel: str
    border: int = 0  # empty pixels on each side of the picture
    in_8_bits: bool = False  # whether values were rounded to multiples of 1/255
    clips: bool = True  # whether values were clipped to [0, 1]

    def operator(self) -> Tensor | None:
        """The matrix D (28, 105) along each axis, or None if there is none."""
        if self.kernel == "max":
            return None
        matrix = _kernel_matrix(self.kernel, BITMAP_SIZE, IMAGE_SIZE - 2 * self.border)
        return F.pad(matrix, (0, 0, self.border, self.border))

    def seen(self) -> Tensor:
        """The rows and columns of a bitmap that it reads, (105,) bool."""
        operator = self.operator()
        return torch.ones(BITMAP_SIZE) > 0 if operator is None else operator.abs().sum(0) > 0

    def apply(self, bitmaps: Tensor, operator: Tensor | None) -> Tensor:
        """Resize the seen part of bitmaps (n, k, k) to images (n, 28, 28).

        Args:
            operator: the seen columns (28, k) of `operator`; None if that is None.
        """
        if operator is None:
            images = F.adaptive_max_pool2d(bitmaps, IMAGE_SIZE - 2 * self.border)
            return F.pad(images, (self.border,) * 4)
        rows = bitmaps @ operator.T
        # As PIL does: what is between is bytes, too.
        return self._stored(operator @ (self._stored(rows) if self.in_8_bits else rows))

    def _stored(self, images: Tensor) -> Tensor:
        images = images.clamp(0, 1) if self.clips else images  # cubic kernels overshoot
        if not self.in_8_bits:
            return images
        rounded = (images * 255).round() / 255
        return images + (rounded - images).detach()  # gradients pass through


def resized(bitmaps: Tensor, resizing: Resizing) -> Tensor:
    """Resize whole bitmaps (n, 105, 105) in {0, 1} to images (n, 28, 28)."""
    operator = resizing.operator()
    return resizing.apply(bitmaps, None if operator is None else operator.to(bitmaps))


def listed_levels(operator: Tensor | None) -> Tensor | None:
    """All values that each pixel of ``D bits D^T`` can have, (K, 28, 28); None if too many.

    A level is the same pattern of a pixel's bits everywhere, whatever grey it gives, so that it
    looks alike to a convolution.
    """
    if operator is None or (n := int((operator != 0).sum(1).max())) > _MOST_LISTED:
        return None
    # Weights of the bits that each row reads, from left to right, (28, n).
    weights = operator.gather(1, operator.topk(n, dim=1).indices.sort(1).values)
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * (n * n)).view(-1, n, n)
    return torch.einsum("ia,jb,kab->kij", weights, weights, patterns.to(weights))


def _kernel_matrix(kernel: str, n_in: int, n_out: int) -> Tensor:
    """Weights (n_out, n_in) of a kernel; rows sum to one."""
    if kernel == "coverage":
        i, left = torch.arange(n_in), torch.arange(n_out)[:, None] * n_in / n_out
        weights = (torch.minimum(left + n_in / n_out, i + 1) - torch.maximum(left, i)).clamp(min=0)
        return weights / weights.sum(1, keepdim=True)
    basis = torch.eye(n_in)[:, None, None, :]  # one unit vector per batch entry, 1 x n_in
    rows = F.interpolate(basis, size=(1, n_out), **_TORCH_KERNELS[kernel])  # type: ignore[arg-type]
    return rows[:, 0, 0, :].T.contiguous()
