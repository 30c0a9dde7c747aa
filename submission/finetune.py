# SPDX-License-Identifier: MIT
"""Adapt a pretrained rectified-flow network to a new class from ten drawings.

From trial 0 of study runes-default: loss 0.0715 ± 0.0002, the mean of 8 instances.  The recipe's
digest is f40f8e75f7da.

Made from runes 0.1.0, code ec215ad4a745: the modules that trials run, without branches that this
recipe does not take.  It needs Python 3.10 and torch 2.4 or newer.  To make it again:

    python -m hpo.export --study runes-default --trial 0 --out finetune.py
"""

import copy as _copy
import math as _math
import time as _time
from collections.abc import Callable as _Callable
from collections.abc import Iterator as _Iterator
from concurrent.futures import ThreadPoolExecutor as _ThreadPoolExecutor
from contextlib import contextmanager as _contextmanager
from contextlib import nullcontext as _nullcontext
from threading import get_ident as _get_ident
from typing import Any as _Any
from typing import NamedTuple as _NamedTuple
from typing import TypeVar as _TypeVar

import torch
import torch.nn.functional as _F
from torch import Tensor as _Tensor
from torch import nn as _nn

# ========================================== The recipe ==========================================

# Every value that can be tuned: change one here, and it has its effect.


class _Recipe(_NamedTuple):
    """How to adapt a pretrained network to ten drawings.

    Times within a run are shares of the run, also if the deadline ends it early.  Pixels are
    those of the 28x28 image.  Ranges of the augmentation are half-widths of uniform
    distributions.
    """

    # These are decided, and built into the code below:
    # schedule = "cosine": learning rate after the warm-up
    # train_groups = ("input", "down", "middle", "up", "output", "norm_bias", "embedding"): groups
    #   of layers that train; the others are frozen
    # lora_rank = 0: rank of the low-rank updates; 0 is full training
    # output = "levels": a posterior over each pixel's grey level, or the network's own velocity

    # Optimisation
    steps: int = 6000  # optimizer steps when time allows
    batch_size: int = 32  # augmented drawings per step (images)
    lr: float = 0.004  # peak learning rate of AdamW
    warmup: float = 0.05  # linear warm-up of the learning rate (share)
    beta2: float = 0.99  # AdamW's decay of squared gradients
    clip_norm: float = 1.0  # largest gradient norm; 0 is no clipping

    # What is learnt
    level_weight: float = 0.15  # of the levels' cross entropy beside the flow loss
    head_hidden: int = 64  # width of the head's second path; 0 is no second path (channels)
    head_lr_factor: float = 3.0  # learning rate of the levels' head over that of the rest
    logit_mean: float = -0.5  # mean of logit(t) for the times of training
    logit_std: float = 1.5  # deviation of logit(t)

    # Posterior means over a bank of augmented drawings
    bank_images: int = 4096  # augmented drawings in the bank; 0 is no bank (images)
    bank_limit: float = 0.9  # most that their posterior mean counts in an answer, at noise
    target_limit: float = 0.9  # most that it counts in the target of a training step
    window_images: int = 2048  # of the bank that are also compared window by window (images)
    window_limit: float = 0.35  # most that their mean counts in an answer, at less noise
    window_px: float = 5.5  # deviation of a window at as much noise as signal (px)

    # Augmentation mix
    render: str = "pen"  # draw along the pen's path anew, or warp the 28x28 drawing itself
    rotation_deg: float = 2.0  # rotation, either way (degrees)
    scale: float = 0.2  # size, as a relative change
    aspect: float = 0.3  # width over height, as a relative change
    shear: float = 0.08  # horizontal shear: how upright strokes lean
    slope: float = 0.2  # vertical shear: how level strokes rise
    shift_px: float = 1.5  # shift along each axis (px)
    elastic_px: float = 0.4  # deviation of smooth random displacements (px)
    vertical: float = 1.5  # shifts and elastic offsets along y over those along x
    blend: float = 0.8  # how far a drawing drawn by pen turns into others at t = 1
    blend_from_t: float = 0.2  # t from which drawings blend, in proportion to what t is above it
    blend_spread: float = 1.0  # variety of what it turns into, over that of the drawings

    # The call
    seed: int = 0  # of every random number in the call
    precision: str = "auto"  # number format of a step
    deadline_s: float = 117.0  # wall clock after which the call returns (s)


# ==================================== The call and its loop =====================================

# `finetune_model`: adapt a pretrained network to a new class from a few drawings.


class _AdaptationError(RuntimeError):
    """The run can't go on, because its loss is not finite."""


def finetune_model(
    pretrained_model: _nn.Module, train_dataset: _Any, recipe: _Recipe | None = None
) -> _nn.Module:
    """Return a copy of the network that has learnt the dataset's class under the next label, 10.

    It trains on a GPU if there is one, and the copy is returned on the network's own device.  The
    process's settings are neither used nor changed.  Other labels get worse, so keep the
    pretrained network for them.

    Args:
        pretrained_model: the course's network or ours; it is not changed.
        train_dataset: pairs (image, label) or bare images, each 1x28x28 in [0, 1].

    Raises:
        ValueError: the network is not the course's, or the dataset is empty or of another kind.
        _AdaptationError: the loss is not finite.
    """
    start = _time.perf_counter()
    network, drawings = _course_network(pretrained_model), _read_drawings(train_dataset)
    chosen = recipe or _Recipe()

    def train(device: torch.device) -> _nn.Module:
        with _standard_settings(device), _step_threads(device) as threads:
            run = _Run(device, network, drawings, chosen, threads)
            clock = _Clock(start, chosen.steps, chosen.deadline_s)
            while not clock.is_over:
                _take_step(run, clock)
            return run.finished()

    return _on_gpu_or_cpu(network, train)


def _take_step(run: "_Run", clock: "_Clock") -> float:
    """One training step: batch, loss, gradients, weights; returns the batch's flow loss."""
    batch = next(run.batches)  # augmented drawings x, times t, targets, noises e
    share, advance = clock.share, clock.tick()
    run.weights.set_rates(share, advance)
    gradients, flow_loss = run.gradients(batch)
    run.weights.step(gradients)
    loss = flow_loss.item()
    _check_finite(loss, clock.step, run.recipe)
    return loss


def _check_finite(loss: float, step: int, recipe: _Recipe) -> None:
    """Raise AdaptationError if ``loss`` is not finite."""
    if not _math.isfinite(loss):
        raise _AdaptationError(f"loss is {loss} at step {step}; lower lr ({recipe.lr:g})")


# =========================================== Drawings ===========================================

# Read a dataset of `finetune_model` as one tensor of white strokes on black in [0, 1].
#
# Another range or polarity is converted if it is beyond doubt, and rejected otherwise.

_OVERSHOOT = 0.3  # kernels with negative lobes overshoot [0, 1] by less
# Paper and ink in other ranges: bytes; mean and deviation of a half; centred; MNIST's own.
_RANGES = ((0.0, 255.0), (-1.0, 1.0), (-0.5, 0.5), (-0.1307 / 0.3081, (1 - 0.1307) / 0.3081))
_LIGHT = 0.6  # strokes cover a smaller share of the pixels
_IMAGE_SIZE = 28  # pixels a side, as networks see them
_SHAPES = ((_IMAGE_SIZE, _IMAGE_SIZE), (_IMAGE_SIZE**2,))
_GIVE = "give images of 1x28x28 in [0, 1], white strokes on black"


def _read_drawings(dataset: _Any) -> _Tensor:
    """The images of a dataset, (n, 1, 28, 28) float32 in [0, 1], white on black."""
    # By length and index, because iteration over a dataset may not end properly.
    by_index = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, (dict, str)) or not (by_index or hasattr(dataset, "__iter__")):
        raise ValueError(f"the dataset is a {type(dataset).__name__}; {_GIVE}")
    items = (dataset[i] for i in range(len(dataset))) if by_index else dataset
    images: list[_Tensor] = []
    for i, item in enumerate(items):
        image = item[0] if isinstance(item, (tuple, list)) else item
        try:
            image = torch.as_tensor(image, device="cpu").detach()  # whatever the default device
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"drawing {i} is a {type(image).__name__}; {_GIVE}") from None
        if image.squeeze().shape not in _SHAPES or image.is_complex():
            raise ValueError(f"drawing {i} is {tuple(image.shape)}; {_GIVE}")
        scale = 255.0 if image.dtype == torch.uint8 and image.max() > 1 else 1.0
        images.append(image.float().reshape(1, _IMAGE_SIZE, _IMAGE_SIZE) / scale)
    if not images:
        raise ValueError("the dataset is empty; at least one drawing is needed")
    return _white_on_black(_from_range(torch.stack(images)))


def _from_range(images: _Tensor) -> _Tensor:
    """Convert images from one of the known ranges to [0, 1]."""
    least, most = images.amin((1, 2, 3)), images.amax((1, 2, 3))
    is_unit = (least >= -_OVERSHOOT) & (most <= 1 + _OVERSHOOT)
    if is_unit.all():
        return images
    paper = images.flatten(1).mode(1).values  # the most common value of each drawing
    for low, high in _RANGES:
        near = 1e-3 * (high - low)
        of_paper = ((paper - low).abs() < near) | ((paper - high).abs() < near)
        within = (least > low - near).all() and (most < high + near).all()
        if of_paper.all() and within and most.max() - least.min() > (high - low) / 2:
            return (images - low) / (high - low)
    i = int((~is_unit).nonzero()[0])
    raise ValueError(f"drawing {i} lies in [{least[i]:.4g}, {most[i]:.4g}]; {_GIVE}")


def _white_on_black(images: _Tensor) -> _Tensor:
    """Invert the images if all are mostly light; leave them if all are mostly dark."""
    light = (images > 0.5).flatten(1).float().mean(1) > _LIGHT
    if light.any() and not light.all():
        i = int(light.nonzero()[0])
        raise ValueError(f"drawing {i} is black on white and others are not; {_GIVE}")
    return 1 - images if light.all() else images


# From 28x28 grey drawings back to the 105x105 one-bit bitmaps they were resized from.
#
# The resize is taken to be the one under which smooth strokes of the pen's width fit best.

_GREY = 0.02  # values further than this from 0 and 1 are grey
_BORDERS = (0, 2, 4)  # pixels; MNIST has four
_EXACT = 0.6 / 255  # values this near to those that a resize can give count as equal
_SCREEN_STEPS, _FIT_STEPS = 15, 80
_SCREENED = 4  # drawings for a first, short fit of each resize
_SMOOTH_PX = 1.5  # strokes have no detail finer than this
_BINARY_WEIGHT = 2e-3  # pull of unseen pixels to ink or paper
# Among fits as good as this the pen's width decides, and then the plainer case.
_ERROR_FLOOR = 1e-4
_WIDTH_WEIGHT = 4.0
_BORDER_FACTOR = 1.5


def _rebuild(images: _Tensor) -> "tuple[_Tensor, _Resizing, float]":
    """Bitmaps (n, 105, 105) behind ``images`` (n, 28, 28), how they were resized, and the
    error."""
    resizing = _find_resizing(images)
    bitmaps, error = _fit(images, resizing, _FIT_STEPS)
    return bitmaps, resizing, error


def _find_resizing(images: _Tensor) -> "_Resizing":
    """Find how ``images`` (n, 28, 28) were resized: by exact tests if possible, else by fits."""
    two_valued = bool(((images < _GREY) | (images > 1 - _GREY)).all())
    steps = images * 255
    in_8_bits = not two_valued and bool(((steps - steps.round()).abs() < 1e-3).all())
    clips = bool(((images >= 0) & (images <= 1)).all())
    inside = {b: _F.pad(_F.pad(images, (-b,) * 4), (b,) * 4) for b in _BORDERS}
    borders = [b for b in _BORDERS if (images - inside[b]).abs().max() <= _GREY]
    kernels = [kernel for kernel in _KERNELS if (kernel in _TWO_VALUED) == two_valued]
    candidates = [_Resizing(k, b, in_8_bits, clips) for b in borders for k in kernels]
    if not two_valued:
        exact = [candidate for candidate in candidates if _lists(candidate, images)]
        candidates = exact or candidates
    if len(candidates) == 1:
        return candidates[0]
    return min(candidates, key=lambda candidate: _badness(images[:_SCREENED], candidate))


def _stroke_radius(bitmaps: _Tensor) -> float:
    """Half the width of the strokes of ``bitmaps`` (n, H, W), in pixels, as area over edge.

    A strip of half-width r and length l has the area 2 r l and an edge of length 2 l, which
    Crofton's formula counts along four directions.
    """
    ink, edge = _F.pad(bitmaps, (1, 1, 1, 1)), 1e-6
    for step in ((0, 1), (1, 0), (1, 1), (1, -1)):
        changes = (ink - ink.roll(step, (1, 2))).abs().sum().item()
        edge += _math.pi / 8 * changes / _math.hypot(*step)
    return bitmaps.sum().item() / edge


def _lists(candidate: "_Resizing", images: _Tensor) -> bool:
    """Whether all grey values are among those that the candidate can give."""
    if (levels := _listed_levels(candidate.operator())) is None:
        return False
    return bool(((images[:, None] - levels.to(images)).abs().amin(1) < _EXACT).all())


def _badness(images: _Tensor, candidate: "_Resizing") -> float:
    """Error of a short fit, and how far its strokes are from the pen's width."""
    bitmaps, error = _fit(images, candidate, _SCREEN_STEPS)
    off = abs(_math.log(max(_stroke_radius(bitmaps), 0.1) / _PEN_RADIUS))
    factor = 1.0 if candidate.border == 0 else _BORDER_FACTOR
    return factor * (error + _ERROR_FLOOR) * _math.exp(_WIDTH_WEIGHT * off)


def _fit(images: _Tensor, resizing: "_Resizing", n_steps: int) -> tuple[_Tensor, float]:
    """Fit bitmaps of smooth strokes whose resized images are ``images``; returns the error,
    too."""
    operator = resizing.operator()
    operator = None if operator is None else operator.to(images)
    smooth = _gaussian_matrix(_BITMAP_SIZE, _SMOOTH_PX).to(images)
    inner = _F.pad(images[:, None], (-resizing.border,) * 4)
    start = _F.interpolate(inner, size=(_BITMAP_SIZE, _BITMAP_SIZE), mode="bicubic")[:, 0]

    def loss(logits: _Tensor, share: float) -> _Tensor:
        ink = torch.sigmoid(2 * (smooth @ logits @ smooth.T))
        error = (resizing.apply(ink, operator) - images).square().sum()
        return error + _BINARY_WEIGHT * (ink * (1 - ink)).sum()

    logits = _descend(loss, 8 * start - 4, n_steps, (0.5, 0.5))
    bitmaps = (smooth @ logits @ smooth.T > 0).to(images.dtype)
    error = (resizing.apply(bitmaps, operator) - images).square().mean().item()
    return bitmaps, error


# The family of resizes that may have turned a bitmap of 105x105 into an image of 28x28.
#
# All but "max" are linear along each axis: ``image = D bitmap D^T``.

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
_TWO_VALUED = ("nearest", "max")  # "max": the largest value of each cell
_KERNELS = (*_TORCH_KERNELS, "coverage", "max")  # "coverage": weights are covered parts of pixels
_MOST_LISTED = 2  # values are listed if a pixel depends on so many bits along each axis


class _Resizing(_NamedTuple):
    """One way to resize."""

    kernel: str
    border: int = 0  # empty pixels on each side of the picture
    in_8_bits: bool = False  # whether values were rounded to multiples of 1/255
    clips: bool = True  # whether values were clipped to [0, 1]

    def operator(self) -> _Tensor | None:
        """The matrix D (28, 105) along each axis, or None if there is none."""
        if self.kernel == "max":
            return None
        matrix = _kernel_matrix(self.kernel, _BITMAP_SIZE, _IMAGE_SIZE - 2 * self.border)
        return _F.pad(matrix, (0, 0, self.border, self.border))

    def seen(self) -> _Tensor:
        """The rows and columns of a bitmap that it reads, (105,) bool."""
        operator = self.operator()
        return torch.ones(_BITMAP_SIZE) > 0 if operator is None else operator.abs().sum(0) > 0

    def apply(self, bitmaps: _Tensor, operator: _Tensor | None) -> _Tensor:
        """Resize the seen part of bitmaps (n, k, k) to images (n, 28, 28)."""
        if operator is None:
            images = _F.adaptive_max_pool2d(bitmaps, _IMAGE_SIZE - 2 * self.border)
            return _F.pad(images, (self.border,) * 4)
        rows = bitmaps @ operator.T
        # As PIL does: what is between is bytes, too.
        return self._stored(operator @ (self._stored(rows) if self.in_8_bits else rows))

    def _stored(self, images: _Tensor) -> _Tensor:
        images = images.clamp(0, 1) if self.clips else images  # cubic kernels overshoot
        if not self.in_8_bits:
            return images
        rounded = (images * 255).round() / 255
        return images + (rounded - images).detach()  # gradients pass through


def _listed_levels(operator: _Tensor | None) -> _Tensor | None:
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


def _kernel_matrix(kernel: str, n_in: int, n_out: int) -> _Tensor:
    """Weights (n_out, n_in) of a kernel; rows sum to one."""
    if kernel == "coverage":
        i, left = torch.arange(n_in), torch.arange(n_out)[:, None] * n_in / n_out
        weights = (torch.minimum(left + n_in / n_out, i + 1) - torch.maximum(left, i)).clamp(min=0)
        return weights / weights.sum(1, keepdim=True)
    basis = torch.eye(n_in)[:, None, None, :]  # one unit vector per batch entry, 1 x n_in
    rows = _F.interpolate(basis, size=(1, n_out), **_TORCH_KERNELS[kernel])
    return rows[:, 0, 0, :].T.contiguous()


# The path of the round pen behind a bitmap, and bitmaps drawn along such a path.
#
# Omniglot's canvas made ink of every pixel whose centre lies within 2.5 pixels of the pen's path.

_TRACE_STEPS = 40
_FIRST_LR, _LAST_LR = 0.15, 0.03  # pixels
_FIRST_EDGE, _LAST_EDGE = 0.6, 0.2  # softness of the stroke's edge while fitting, pixels
_STRAIGHT_WEIGHT = 0.9
_LINKED = 1.5  # pixels of the skeleton within this distance are neighbours
_OUTSIDE = -50.0  # place of the points that pad shorter paths


def _trace(bitmaps: _Tensor, seen: _Tensor, radius: float) -> tuple[_Tensor, _Tensor, float]:
    """Find the paths along which a pen draws ``bitmaps`` (n, H, H), 1 is ink.

    Gradient descent moves the skeleton's points until discs around them cover the ink alone.
    Returns the points (n, P, 2), x and y in pixels whose centres are whole numbers; which of them
    are not padding (n, P); and wrong bits over ink bits of the worst drawing.
    """
    paths = [line.nonzero().flip(1).float() for line in _skeletons(bitmaps > 0.5)]
    points = _nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=_OUTSIDE)
    points = _F.pad(points, (0, 0, 0, 1), value=_OUTSIDE)  # the only point of a blank drawing
    present = points[..., 0] != _OUTSIDE
    linked = (torch.cdist(points, points) < _LINKED).float()  # to itself, too
    n_linked = linked.sum(-1, keepdim=True)
    i = torch.arange(len(seen), device=seen.device)[seen].float()
    places = torch.stack(torch.meshgrid(i, i, indexing="xy"), -1).view(1, -1, 2)
    bits = bitmaps[:, seen][:, :, seen].flatten(1)

    def loss(points: _Tensor, share: float) -> _Tensor:
        edge = _FIRST_EDGE + share * (_LAST_EDGE - _FIRST_EDGE)
        # A pixel is ink if its nearest point is near enough.
        index = torch.cdist(places, points.detach()).argmin(2)[..., None].expand(-1, -1, 2)
        distance = ((places - points.gather(1, index)).square().sum(-1) + 1e-6).sqrt()
        wrong = (torch.sigmoid((radius - distance) / edge) - bits).square().sum()
        # Pull points to the middle of their neighbours, except ends, which have only one.
        bend = (linked @ points / n_linked - points).square().sum(-1)
        return wrong + _STRAIGHT_WEIGHT * (bend * (n_linked[..., 0] > 2)).sum()

    points = _descend(loss, points, _TRACE_STEPS, (_FIRST_LR, _LAST_LR))
    ink = torch.cdist(places, points).amin(2) <= radius
    error = (ink != (bits > 0.5)).sum(1) / bits.sum(1).clamp(min=1)  # (n,)
    return points, present, error.max().item()


def _stamp(points: _Tensor, present: _Tensor, radius: float, seen: _Tensor) -> _Tensor:
    """Ink within ``radius`` of any of ``points`` (b, P, 2), at the seen pixels only.

    A disc covers one interval of each row.  Its ends are counted up and down, and a pixel is ink
    if the running sum is positive.
    """
    b, h, k = len(points), len(seen), int(seen.sum())
    before = _F.pad(seen.long().cumsum(0), (1, 0))  # (H + 1,): number of seen columns left of each
    row_of = torch.where(seen, before[:-1], k)  # unseen rows go to an extra row, which is dropped
    x, y = points[..., 0, None], points[..., 1, None]  # (b, P, 1)
    offsets = torch.arange(-int(radius), int(radius) + 2, device=points.device)
    rows = y.floor().long() + offsets  # (b, P, R)
    half_squared = radius**2 - (rows - y).square()
    inside = (half_squared >= 0) & (rows >= 0) & (rows < h) & present[..., None]
    half = half_squared.clamp(min=0).sqrt()
    first = before[(x - half).ceil().long().clamp(0, h)]
    last = before[((x + half).floor().long() + 1).clamp(0, h)]
    row = torch.where(inside, row_of[rows.clamp(0, h - 1)], k)
    place = (torch.arange(b, device=points.device)[:, None, None] * (k + 1) + row) * (k + 1)
    counts = torch.zeros(b * (k + 1) * (k + 1), device=points.device)
    one = torch.ones((), device=points.device).expand(place.numel())
    counts.index_add_(0, (place + first).flatten(), one)
    counts.index_add_(0, (place + last).flatten(), one, alpha=-1)
    return (counts.view(b, k + 1, k + 1)[:, :k, :k].cumsum(2) > 0).to(points.dtype)


def _skeletons(ink: _Tensor) -> _Tensor:
    """Lines one pixel wide in the middle of the strokes of ``ink`` (n, H, W), both boolean.

    Zhang and Suen, "A fast parallel algorithm for thinning digital patterns" (1984).
    """
    ink = _F.pad(ink, (1, 1, 1, 1))
    around = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    before = None
    while before is None or not torch.equal(ink, before):
        before = ink
        for corners in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            near = torch.stack([ink.roll((-dy, -dx), (1, 2)) for dy, dx in around])
            n_near = near.sum(0)
            n_rises = (~near & near.roll(-1, 0)).sum(0)  # from paper to ink, once around
            removed = (n_near >= 2) & (n_near <= 6) & (n_rises == 1)
            for corner in corners:
                removed &= ~near[list(corner)].all(0)
            left = ink & ~removed
            near_left = _F.max_pool2d(left.float(), 3, 1, 1) > 0
            ink = left | (ink & ~near_left)  # keep blocks of 2 x 2, which would vanish
    return ink[:, 1:-1, 1:-1]


# Registration: smooth maps between all pairs of drawings, from coarse to fine.
#
# Rueckert et al., "Nonrigid registration using free-form deformations" (1999).

_SIZE = 48  # size of the compared images, pixels along each axis
_BLURS_PX = (4.0, 2.0, 1.2)
_STEPS = 40  # steps for each blur
_LR = 0.02  # learning rate of displacements; the canvas spans 2
_BENDING_WEIGHT = 0.02


def _correspondences(bitmaps: _Tensor) -> _Tensor:
    """Fit maps between all pairs of ``bitmaps`` (n, 105, 105), 1 is ink: (n, n, 2, GRID, GRID).

    Entry (i, j) has control displacements, x then y, on a canvas that spans [-1, 1]: place p of
    drawing j corresponds to p plus the displacement there in drawing i.
    """
    n = len(bitmaps)
    images = _F.interpolate(bitmaps[:, None], size=(_SIZE, _SIZE), mode="area")
    i, j = (~torch.eye(n, dtype=torch.bool, device=bitmaps.device)).nonzero().T
    p = (torch.arange(_SIZE, dtype=torch.float32, device=bitmaps.device) + 0.5) * (2 / _SIZE) - 1
    spread = _spline_matrix(p)  # (_SIZE, GRID)
    places = torch.stack(torch.meshgrid(p, p, indexing="xy"), -1)  # (_SIZE, _SIZE, 2)
    maps = images.new_zeros(len(i), 2, _GRID, _GRID)
    for blur_px in _BLURS_PX if len(i) else ():
        # The blur lowers the contrast; this weights all scales about equally.
        smooth = _gaussian_matrix(_SIZE, blur_px).to(images)
        blurred = blur_px * smooth @ images @ smooth.T

        def loss(
            maps: _Tensor, share: float, blurred: _Tensor = blurred, px: float = blur_px
        ) -> _Tensor:
            field = (spread @ maps @ spread.T).movedim(1, -1)
            moved = _F.grid_sample(blurred[i], places + field, align_corners=False)
            error = (moved - blurred[j]).square().mean((1, 2, 3))
            return (error + _BENDING_WEIGHT * px**2 * _bending(maps)).sum()

        maps = _descend(loss, maps, _STEPS, (_LR, 0.3 * _LR))
    found = bitmaps.new_zeros(n, n, 2, _GRID, _GRID)
    found[i, j] = maps
    return found


def _bending(maps: _Tensor) -> _Tensor:
    """Mean squared second differences of each map, (pairs,)."""
    across = maps.diff(dim=-1).diff(dim=-2)
    parts = (maps.diff(2, dim=-1), maps.diff(2, dim=-2), across, across)
    return torch.stack([part.square().flatten(1).mean(1) for part in parts]).sum(0)


# Smooth fields and pictures along one axis, as matrices: cubic B-splines and a Gaussian blur.

_GRID = 8  # control points along each axis


def _spline_matrix(positions: _Tensor) -> _Tensor:
    """Weights (k, GRID) of the control points at ``positions`` (k,) in [-1, 1]; rows sum to 1."""
    step = 2 / (_GRID - 3)  # the grid has one more point on either side of the canvas
    knots = torch.linspace(-1 - step, 1 + step, _GRID, device=positions.device)
    u = (positions[:, None] - knots).abs() / step
    near = 2 / 3 - u**2 + u**3 / 2
    far = (2 - u).clamp(min=0) ** 3 / 6
    return torch.where(u < 1, near, far)


def _gaussian_matrix(n: int, sigma: float) -> _Tensor:
    """Convolution with a Gaussian as a matrix (n, n); rows sum to one, also at the borders."""
    i = torch.arange(n, dtype=torch.float32)
    offsets = (i[:, None] - i) / sigma
    # Cut off, because weights further out are subnormal numbers, which are slow to multiply.
    weights = torch.exp(-0.5 * offsets**2) * (offsets.abs() <= 4)
    return weights / weights.sum(1, keepdim=True)


# Adam on one tensor, to fit paths, bitmaps and maps to drawings.


def _descend(
    loss: _Callable[[_Tensor, float], _Tensor], start: _Tensor, n: int, lr: tuple[float, float]
) -> _Tensor:
    """Make ``n`` steps of Adam from ``start``; returns the result."""
    with torch.enable_grad():
        x = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([x])
        for step in range(n):
            share = step / n
            optimizer.param_groups[0]["lr"] = lr[0] + share * (lr[1] - lr[0])
            optimizer.zero_grad()
            loss(x, share).backward()
            optimizer.step()
    return x.detach()


# The canvases that drawings live on: Omniglot's bitmaps and the images that networks see.

_BITMAP_SIZE = 105  # pixels a side, as drawn
_PEN_RADIUS = 2.5  # pixels of the bitmap, whoever draws


# ========================================= Augmentation =========================================

# The augmentation mix: endless new drawings from ten, batched on the device.
#
# Affine and elastic maps move a pen's path, or a picture's pixels.  No flips: runes are chiral.

# With a larger error drawings are not resized strokes, and are warped as pictures.  Real: 1e-4.
_MAX_REBUILD_ERROR = 5e-3
# Strokes of another width, relative to Omniglot's, are of another pen.  Real: 0.86 to 1.26.
_NARROWEST, _WIDEST = 0.8, 1.32
_RADIUS_BIAS = 1.04  # factor on area over edge, because strokes have ends
_THINNEST = 0.2  # thinnest pen relative to Omniglot's: a pixel wide
_MAX_PEN_ERROR = 0.2  # wrong bits over ink; real drawings: mostly under 0.05
_FIELD_DEVIATION = 0.48  # mean deviation of a field whose control points have deviation 1
_MOST_BLENDED, _MOST_TRACED = 20, 60  # drawings; six seconds on one core, each


class _Augmenter:
    """Draws batches of warped drawings."""

    def __init__(self, drawings: _Tensor, recipe: _Recipe, generator: torch.Generator) -> None:
        self.drawings = drawings
        self.recipe = recipe
        self.generator = generator
        # The cost of maps between all pairs grows with the square of the number of drawings.
        self._blends = bool(recipe.blend) and len(drawings) <= _MOST_BLENDED
        self.operator: _Tensor | None = None  # resize (28, m) of the drawings, if known
        self.by_pen = False  # whether drawings are drawn along paths, or warped as pictures
        self._radius = _PEN_RADIUS
        # Size of a pixel along x and y, on a canvas that spans [-1, 1]; shifts are larger along y.
        root = _math.sqrt(recipe.vertical)
        self._px = drawings.new_tensor([1 / root, root]) * (2 / drawings.shape[-1])
        if recipe.render == "pen" and len(drawings) <= _MOST_TRACED:
            self.by_pen = self._prepare(*_rebuild(drawings[:, 0]))

    def __call__(self, n: int, times: _Tensor | None = None) -> _Tensor:
        """Draw ``n`` augmented drawings, (n, 1, 28, 28) in [0, 1]."""
        device = self.drawings.device
        index = torch.randint(len(self.drawings), (n,), generator=self.generator, device=device)
        if self.recipe.render == "pen" and self.by_pen:
            points = self.draw_points(index, times)
            strokes = _stamp(points, self._present[index], self._radius, self._seen)
            return self._resizing.apply(strokes, self.operator)[:, None]
        return _F.grid_sample(self.drawings[index], self.draw_warp(index), align_corners=False)

    def draw_warp(self, index: _Tensor) -> _Tensor:
        """Random source places of the pixels of drawings ``index`` (n,), (n, H, W, 2)."""
        n, size = len(index), self.drawings.shape[-1]
        p = (torch.arange(size).to(self.drawings) + 0.5) * (2 / size) - 1  # of pixels' centres
        linear, shift = self._draw_affine(n)
        xy = torch.stack(torch.meshgrid(p, p, indexing="xy"), -1)  # (H, W, 2) as (x, y)
        # Source = inverse (output - shift).
        grid: _Tensor = (xy[None] - shift[:, None, None, :]) @ torch.linalg.inv(linear)[:, None].mT
        spread = _spline_matrix(p)  # (H, GRID)
        return grid + (spread @ self._draw_offsets(n) @ spread.T).movedim(1, -1)

    def draw_points(self, index: _Tensor, times: _Tensor | None = None) -> _Tensor:
        """Randomly moved points of the paths of drawings ``index`` (n,), (n, P, 2)."""
        n, spread = len(index), self._spread[index]  # (n, P, 2, GRID)
        linear, shift = self._draw_affine(n)
        controls = self._draw_offsets(n)
        if self._blends:
            # The inverse maps: where each point of this drawing lies in the other drawings.
            controls = controls + self._mixed(self._maps[:, index].transpose(0, 1), times)
        # The fields' values at the points, along y first, then along x.
        rows = spread[:, :, 1] @ controls.transpose(1, 2).reshape(n, _GRID, 2 * _GRID)
        field = (rows.view(n, -1, 2, _GRID) * spread[:, :, :1]).sum(-1)
        points = (self._paths[index] + field) @ linear.mT + shift[:, None]  # on the canvas
        return (points + 1) * (_BITMAP_SIZE / 2) - 0.5

    def _draw_affine(self, n: int) -> tuple[_Tensor, _Tensor]:
        """Maps of the canvas, [-1, 1] along each axis, for n images: source to output."""
        r = self.recipe
        angle = self._symmetric(n) * _math.radians(r.rotation_deg)
        scale = 1 + self._symmetric(n) * r.scale
        stretch = torch.sqrt(1 + self._symmetric(n) * r.aspect)
        shear = self._symmetric(n) * r.shear
        slope = self._symmetric(n) * r.slope
        shift = self._symmetric(n, 2) * self._px * r.shift_px
        cos, sin = torch.cos(angle), torch.sin(angle)
        rotation = torch.stack([cos, -sin, sin, cos], -1).view(n, 2, 2)
        one = torch.ones_like(shear)
        slanted = torch.stack([one, shear, slope, 1 + slope * shear], -1).view(n, 2, 2)
        size = torch.stack([scale * stretch, scale / stretch], -1)  # (n, 2)
        return rotation @ slanted * size[:, None, :], shift

    def _draw_offsets(self, n: int) -> _Tensor:
        """Elastic displacements of the control points, (n, 2, GRID, GRID) on the canvas."""
        offsets = self._normal(n, 2, _GRID, _GRID) * self._px[:, None, None]
        return offsets * (self.recipe.elastic_px / _FIELD_DEVIATION)

    def _mixed(self, maps: _Tensor, times: _Tensor | None) -> _Tensor:
        """Control displacements (n, 2, GRID, GRID) that blend drawings toward new ones.

        Each goes a random part of the way to a sample of the normal distribution with the mean
        and the covariance of ``maps`` (n, kinds, 2, GRID, GRID).  It goes further at more noise,
        where variety is visible and strokes spoilt by inexact maps are not.
        """
        r, (n, kinds) = self.recipe, maps.shape[:2]
        variety = self._normal(n, kinds) * (r.blend_spread / _math.sqrt(max(kinds - 1, 1)))
        way = (1 + self._symmetric(n, 1)) / 2 * r.blend
        if times is not None:
            way = way * ((times - r.blend_from_t) / (1 - r.blend_from_t)).clamp(min=0)[:, None]
        weights = way * (1 / kinds + variety - variety.mean(1, keepdim=True))
        return (weights[:, None] @ maps.flatten(2)).view(n, *maps.shape[2:])

    def _prepare(self, bitmaps: _Tensor, resizing: _Resizing, error: float) -> bool:
        """Trace the pen's paths to draw along; false if no pen made the drawings."""
        if error > _MAX_REBUILD_ERROR:
            return False
        seen = resizing.seen().to(self.drawings.device)
        ratio = _stroke_radius(bitmaps) / _PEN_RADIUS
        # Rebuilt strokes tell the width only roughly, so Omniglot's pen is used if it fits.
        if not _NARROWEST <= ratio <= _WIDEST:
            self._radius = _PEN_RADIUS * max(ratio / _RADIUS_BIAS, _THINNEST)
        points, self._present, wrong_share = _trace(bitmaps, seen, self._radius)
        if wrong_share > _MAX_PEN_ERROR:
            return False
        self._seen, self._resizing = seen, resizing
        # Draw only rows and columns that the resize reads: a quarter of the bits, if plain.
        if (operator := resizing.operator()) is not None:
            self.operator = operator.to(self.drawings)[:, seen].contiguous()
        self._paths = (points + 0.5) * (2 / _BITMAP_SIZE) - 1
        within = self._paths.clamp(-1, 1)  # padding points are far outside of the control grid
        self._spread = _spline_matrix(within.flatten()).view(*within.shape, _GRID)  # x, then y
        if self._blends:
            self._maps = _correspondences(bitmaps)
        return True

    def _symmetric(self, *shape: int) -> _Tensor:
        return 2 * torch.rand(shape, generator=self.generator, device=self.drawings.device) - 1

    def _normal(self, *shape: int) -> _Tensor:
        return torch.randn(shape, generator=self.generator, device=self.drawings.device)


# ========================================== Prediction ==========================================

# A velocity network that answers with a posterior over each pixel's grey level.
#
# With x_t = (1 - t) x + t e the velocity of least error is (x_t - E[x | x_t]) / t.  The network
# gives each level a logit; Bayes' rule adds the pixel's own likelihood, which is exact.

_LEAST_T_IN_TRAINING = 0.01  # the flow loss divides by the square of t
_LEAST_T = 1e-6  # at t = 0 the noise can't be seen, and its mean, 0, is the best prediction


class _LevelPosterior(_nn.Module):
    """The course's network with a head for the levels of its newest class."""

    def __init__(
        self,
        network: _Any,
        levels: "_GreyLevels",
        label: int,
        recipe: _Recipe,
        generator: torch.Generator,
        bank: "_ImageBank | None" = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.head = _LevelHead(network.conv_out, len(levels.means), recipe.head_hidden, generator)
        self.levels = levels
        self.label = label
        self.n_channels_img = network.n_channels_img
        self.n_classes = network.n_classes
        self.bank = bank
        self.recipe = recipe

    def forward(self, x_t: _Tensor, t: _Tensor, c: _Tensor) -> _Tensor:
        """The velocity at ``x_t`` (B, 1, 28, 28) for times t (B, 1, 1, 1) and labels c (B,)."""
        learnt = c == self.label
        if not learnt.any():
            velocity: _Tensor = self.network(x_t, t, c)
            return velocity
        t = t.to(x_t).reshape(-1, 1, 1, 1)
        log_probability, means = self.levels.posterior(x_t, t)
        p = (self.logits(x_t, t, c) + log_probability).softmax(1)
        x = (p * means).sum(1, keepdim=True)
        if self.bank is not None:
            x = self.bank(x, x_t, t)
        velocity = torch.where(t < _LEAST_T, -x, (x_t - x) / t.clamp(min=_LEAST_T))
        if learnt.all():
            return velocity
        return torch.where(learnt[:, None, None, None], velocity, self.network(x_t, t, c))

    def logits(self, x_t: _Tensor, t: _Tensor, c: _Tensor) -> _Tensor:
        """The network's logit of each level, (B, K, 28, 28) in the type of ``x_t``."""
        half = x_t.dtype in (torch.float16, torch.bfloat16)  # then everything is computed in it
        with _autocast(x_t.device, "fp32" if half else self.recipe.precision):
            logits: _Tensor = self.head(_last_features(self.network, x_t, t, c))
        # NCHW: sums over levels are faster than channels_last here.
        return logits.to(x_t.dtype).contiguous()

    def targets(self, x: _Tensor) -> _Tensor:
        """Further training targets of images x (n, 1, 28, 28): their levels (n, 28, 28)."""
        return self.levels.nearest(x)

    def losses(
        self, x: _Tensor, t: _Tensor, levels: _Tensor, e: _Tensor, c: _Tensor
    ) -> tuple[_Tensor, _Tensor]:
        """The training loss for images x (B, 1, 28, 28) with noises e, times t, labels c."""
        x_t = (1 - t) * x + t * e
        with torch.no_grad():
            log_probability, means = self.levels.posterior(x_t, t)
            limit = self.recipe.target_limit
            target = x if self.bank is None else self.bank.toward_posterior(x, x_t, t, limit)
        log_p = (self.logits(x_t, t, c) + log_probability).log_softmax(1)
        mean = (log_p.exp() * means).sum(1, keepdim=True)
        # velocity - (e - x) equals minus this error.
        error = (mean - target) / t.clamp(min=_LEAST_T_IN_TRAINING)
        loss = error.square().mean()
        entropy = -log_p.gather(1, levels[:, None]).mean()
        return loss + self.recipe.level_weight * entropy, loss.detach()


def _last_features(network: _Any, x_t: _Tensor, t: _Tensor, c: _Tensor) -> _Tensor:
    """The input of the network's last convolution, (B, C, 28, 28), for any forward method."""
    seen: dict[int, _Tensor] = {}  # by thread, because others may use the network, too
    conv = network.conv_out
    hook = conv.register_forward_pre_hook(lambda _, inputs: seen.update({_get_ident(): inputs[0]}))
    try:
        network(x_t, t, c)
    finally:
        hook.remove()
    return seen[_get_ident()]


# A head that maps a network's last features to logits of each pixel's grey levels.


class _LevelHead(_nn.Module):
    """A 3x3 convolution and a second path of two with a ReLU between; logits start at zero.

    A pixel's level depends on the shape of the edge around it, which is not linear in features.
    """

    def __init__(
        self, last: _nn.Conv2d, n_levels: int, n_hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        options = {"kernel_size": 3, "padding": 1, "device": last.weight.device}
        # `skip_init`, as torch's own initialization uses the process's random numbers.
        self.direct = _nn.utils.skip_init(_nn.Conv2d, last.in_channels, n_levels, **options)
        self.n_hidden = n_hidden
        if n_hidden:
            self.hidden = _nn.utils.skip_init(_nn.Conv2d, last.in_channels, n_hidden, **options)
            self.outer = _nn.utils.skip_init(_nn.Conv2d, n_hidden, n_levels, **options)
        for parameter in self.parameters():
            _nn.init.zeros_(parameter)
        if n_hidden:
            # He et al., "Delving Deep into Rectifiers" (2015), section 2.2.
            scale = _math.sqrt(2 / (9 * last.in_channels))
            _nn.init.normal_(self.hidden.weight, 0.0, scale, generator=generator)

    def forward(self, features: _Tensor) -> _Tensor:
        """Logits (B, K, 28, 28) for features (B, C, 28, 28)."""
        logits: _Tensor = self.direct(features)
        if self.n_hidden:
            logits = logits + self.outer(self.hidden(features).relu_())
        return logits


# The grey levels that a pixel can have after ink and paper were resized.
#
# After a plain resize they are the 16 values of 2x2 bits; else paper, ink and steps between.

_N_BINS = 16  # levels if values can't be listed: paper, ink and equal steps between
_EDGE = 1e-3  # values this near to 0 and 1 are paper and ink
_LEAST_VARIANCE = 1e-8
_LEAST_DEVIATION = 1e-6  # so that at t = 0 the deviation is not zero
_LEAST_SHARE = 1e-5  # least prior of a level, so that its logarithm is finite


class _GreyLevels(_nn.Module):
    """A mixture model of a pixel's grey value: N(mean, variance) for each of K levels.

    Means are (K, H, W), or (K, 1, 1) in order of grey if all pixels are alike; variances are
    (K, 1, 1), or (1, 1, 1) if all levels are alike; the levels' prior is (K, 1, 1).
    """

    means: _Tensor
    variances: _Tensor
    log_prior: _Tensor

    def __init__(self, means: _Tensor, variances: _Tensor, log_prior: _Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("variances", variances)
        self.register_buffer("log_prior", log_prior)

    def nearest(self, x: _Tensor) -> _Tensor:
        """The most likely level of each pixel of ``x`` (n, 1, H, W): (n, H, W) long."""
        return ((x - self.means).square() / self.variances + self.variances.log()).argmin(1)

    def posterior(self, x_t: _Tensor, t: _Tensor) -> tuple[_Tensor, _Tensor]:
        """Evidence of each pixel of ``x_t`` (B, 1, H, W) at times t (B, 1, 1, 1) by itself."""
        variance = ((1 - t).square() * self.variances + t.square()).clamp(min=_LEAST_DEVIATION**2)
        # As few passes as possible over all levels of all pixels, which are the slowest part.
        error = torch.addcmul(x_t, self.means, t - 1)
        prior = self.log_prior
        if len(self.variances) > 1:  # otherwise it is the same for all levels
            prior = prior - 0.5 * variance.log()
        gain = (1 - t) * self.variances / variance
        log_probability = torch.addcmul(prior, error, error * (-0.5 / variance))
        return log_probability, torch.addcmul(self.means, error, gain)


def _grey_levels(drawings: _Tensor, samples: _Tensor, operator: _Tensor | None) -> _GreyLevels:
    """Find the levels of drawings."""
    pixels = torch.cat([drawings, samples])
    if operator is None and ((pixels == 0) | (pixels == 1)).all():
        operator = torch.eye(drawings.shape[-1]).to(drawings)  # each pixel is one bit
    means = _listed_levels(operator)
    if means is not None:
        # Deviations from the listed values, such as a file format's rounding, widen every level.
        floor = means.new_full((1, 1, 1), _LEAST_VARIANCE)
        label = _GreyLevels(means, floor, floor).nearest(drawings)[:, None]
        explained = means.expand(len(drawings), -1, -1, -1).gather(1, label)
        variances = floor + (drawings - explained).square().mean()
    else:
        means, variances = _binned(pixels.flatten())
    levels = _GreyLevels(means, variances, torch.zeros_like(variances))
    labels = levels.nearest(samples).flatten()
    shares = labels.bincount(minlength=len(means)) / len(labels)
    levels.log_prior = torch.log(shares + _LEAST_SHARE)[:, None, None]
    return levels


def _binned(values: _Tensor) -> tuple[_Tensor, _Tensor]:
    """Means and variances, (K, 1, 1), of ``values`` in bins: paper, equal steps, ink."""
    steps = torch.linspace(_EDGE, 1 - _EDGE, _N_BINS - 1, device=values.device)
    bins = torch.bucketize(values, steps)
    counts = bins.bincount(minlength=_N_BINS).to(values)
    means = torch.zeros_like(counts).index_add(0, bins, values) / counts.clamp(min=1)
    squares = torch.zeros_like(counts).index_add(0, bins, (values - means[bins]).square())
    variances = squares / counts.clamp(min=1) + _LEAST_VARIANCE
    return means[:, None, None], variances[:, None, None]


# The posterior mean over augmented drawings a_i, mixed into the answer and into its targets:
#
#     E[x | x_t] = sum_i w_i a_i,   w = softmax_i( -|x_t - (1 - t) a_i|^2 / (2 t^2) ).
#
# Xu, Tong and Jaakkola, "Stable target field for reduced variance score estimation in diffusion
# models" (2023).

# Below this t a single image has nearly all the weight.
_FROM_T = 0.3
# The share of whole images rises with their effective number, to half of its limit at 15.
_SHARPNESS = 10
_WINDOWS_TO_T = 0.6  # above this t, whole images predict better
_ROWS = 64  # images of x_t compared at once, to bound the memory


class _ImageBank(_nn.Module):
    """Augmented drawings whose posterior mean is mixed into answers and targets."""

    images: _Tensor  # (n, 784)
    squares: _Tensor  # (n,), their squared norms
    columns: _Tensor  # of the images for windows, from `_window_layouts`
    blocks: _Tensor

    def __init__(self, images: _Tensor, recipe: _Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("squares", self.images.square().sum(1))
        columns, blocks = _window_layouts(self.images[: recipe.window_images])
        self.register_buffer("columns", columns)
        self.register_buffer("blocks", blocks)

    def forward(self, mean: _Tensor, x_t: _Tensor, t: _Tensor) -> _Tensor:
        """Mix the images' posterior mean into ``mean``, a network's E[x | x_t] (B, 1, 28, 28)."""
        parts = zip(mean.split(_ROWS), x_t.split(_ROWS), t.split(_ROWS), strict=True)
        return torch.cat([self._mixed(*part) for part in parts])

    def _mixed(self, mean: _Tensor, x_t: _Tensor, t: _Tensor) -> _Tensor:
        r, mean = self.recipe, self.toward_posterior(mean, x_t, t, self.recipe.bank_limit)
        near = ((t > _FROM_T) & (t < _WINDOWS_TO_T)).flatten()
        if r.window_limit and r.window_images and near.any():
            own, n = _windowed_mean(self.columns, self.blocks, x_t[near], t[near], r.window_px)
            mean[near] += r.window_limit * (1 - 1 / n) * (own - mean[near])
        return mean

    def toward_posterior(self, mean: _Tensor, x_t: _Tensor, t: _Tensor, limit: float) -> _Tensor:
        """Move ``mean`` toward the images' posterior mean, by nearly ``limit`` at much noise."""
        mean = mean.clone()
        noisy = (t > _FROM_T).flatten()
        if limit and noisy.any():
            own, n = _posterior_mean(self.images, self.squares, x_t[noisy], t[noisy])
            mean[noisy] += limit * (1 - 1 / n) ** _SHARPNESS * (own - mean[noisy])
        return mean


def _posterior_mean(
    images: _Tensor, squares: _Tensor, x_t: _Tensor, t: _Tensor
) -> tuple[_Tensor, _Tensor]:
    """E[x | x_t] over ``images`` (n, 784), and the effective number of images in it."""
    # |x_t|^2 is left out: it is the same for all images and cancels in the softmax.
    y, times = x_t.flatten(1), t.flatten()
    factor = (1 - times) / times.square()
    exponent = (factor[:, None] * y) @ images.T
    exponent.addr_(factor * (1 - times), squares, alpha=-0.5)
    weights = exponent.softmax(1)
    effective = 1 / weights.norm(dim=1).square()
    return (weights @ images).view_as(x_t), effective[:, None, None, None]


# The posterior mean over augmented drawings, place by place p:
#
#     w_i(p) = softmax_i( -sum_q g(q - p) (x_t - (1 - t) a_i)_q^2 / (2 t^2) ),
#
# with a Gaussian g of deviation ``width_px`` t / (1 - t).  At less noise no image is similar to x_t
# as a whole, but many are near any one place.

_BLOCK = 4  # pixels along each axis that share their weights


def _window_layouts(images: _Tensor) -> tuple[_Tensor, _Tensor]:
    """Images (n, 784) in the layouts of `_windowed_mean`."""
    columns = images.view(-1, 28, 28).permute(2, 1, 0)
    blocks = images.view(-1, 28 // _BLOCK, _BLOCK, 28 // _BLOCK, _BLOCK).permute(3, 1, 4, 2, 0)
    return torch.cat([columns, columns.square()], 1), blocks.flatten(2, 3).contiguous()


def _windowed_mean(
    columns: _Tensor, blocks: _Tensor, x_t: _Tensor, t: _Tensor, width_px: float
) -> tuple[_Tensor, _Tensor]:
    """E[x | x_t] of each pixel over images near it, and their effective number."""
    y, t = x_t[:, 0], t[:, 0]
    # A window is the product of a factor for its rows and one for its columns.
    pixels = torch.arange(28, device=y.device, dtype=y.dtype)
    middles = pixels[::_BLOCK, None] + (_BLOCK - 1) / 2
    gauss = (-0.5 * ((middles - pixels) * (1 - t) / (t * width_px)).square()).exp()  # (B, k, 28)
    # |x_t|^2 cancels in the softmax, so one product with the images' values and squares is enough.
    of_values = gauss * y.permute(2, 0, 1)[:, :, None]  # (28, B, k, 28)
    of_squares = (gauss * ((t - 1) / 2)).expand_as(of_values)
    factors = torch.cat([of_values, of_squares], -1) * ((1 - t) / t.square())
    along_y = (factors.flatten(1, 2) @ columns).unflatten(1, factors.shape[1:3])
    weights = torch.einsum("bvs,sbun->bvun", gauss, along_y).softmax(-1)
    means = torch.einsum("bvun,vupn->bvup", weights, blocks)
    means = means.unflatten(-1, (_BLOCK, _BLOCK)).permute(0, 2, 4, 1, 3)
    effective = 1 / weights.square().sum(-1).mT.repeat_interleave(_BLOCK, 1)
    return means.reshape(x_t.shape), effective.repeat_interleave(_BLOCK, 2)[:, None]


# The row of a new class, groups of layers to freeze, and low-rank updates (LoRA).

_N_DIGITS = 10  # classes of a pretrained network


def _course_network(model: _Any) -> _nn.Module:
    """A pretrained network, without torch's wrappers."""
    for wrapper in ("_orig_mod", "module"):  # of `torch.compile`, of `_nn.DataParallel`
        model = getattr(model, wrapper, model)
    give = "give the course's network as it was pretrained, on ten digits"
    if not (hasattr(model, "class_embedding") and hasattr(model, "conv_out")):
        raise ValueError(f"the network is a {type(model).__name__}; {give}")
    if (n := len(model.class_embedding.weight)) > _N_DIGITS:
        raise ValueError(f"the network has {n} classes; {give}")
    for name, parameter in model.named_parameters():
        if not parameter.detach().isfinite().all():
            raise ValueError(f"the network's {name} is not finite; {give}")
    network: _nn.Module = model
    return network


def _add_class(model: _Any) -> int:
    """Append the mean row (16,) to the class embedding; returns the new class's label."""
    rows = model.class_embedding.weight.detach()
    weight = torch.cat([rows, rows.mean(0, keepdim=True)])
    model.class_embedding = _nn.Embedding.from_pretrained(weight, freeze=False)
    model.n_classes = len(weight)
    return len(rows)


# Group norms that are fast on a CPU with channels last, where torch's own are slow.

_NARROW_GROUP = 16  # with so many channels, torch's own norm is as fast


def _speed_up_norms(model: _nn.Module) -> None:
    """Replace narrow group norms of ``model`` by `_NarrowGroupNorm`, with the same parameters."""
    for module in model.modules():
        if type(module) is _nn.GroupNorm and module.affine:
            narrow = module.num_channels // module.num_groups < _NARROW_GROUP
            module.__class__ = _NarrowGroupNorm if narrow else _nn.GroupNorm


class _NarrowGroupNorm(_nn.GroupNorm):
    """GroupNorm by sums over pixels, on a CPU: one factor and one shift for each channel."""

    def forward(self, x: _Tensor) -> _Tensor:
        if x.device.type != "cpu" or x.ndim != 4 or not len(x):
            return super().forward(x)
        mean, square = _group_means(x, self.num_groups), _group_means(x * x, self.num_groups)
        rstd = (square - mean * mean).clamp(min=0).add(self.eps).rsqrt()
        factor = self.weight.view(self.num_groups, -1) * rstd  # (B, G, C / G), as what follows
        shift = self.bias.view(self.num_groups, -1) - factor * mean
        factor, shift = (a.reshape(len(x), -1, 1, 1).to(x.dtype) for a in (factor, shift))
        return torch.addcmul(shift, x, factor)


def _group_means(x: _Tensor, n_groups: int) -> _Tensor:
    """Means over channels and pixels, (B, C, H, W) to (B, G, 1), summed in float32 or better."""
    sums = x.sum((2, 3)).to(torch.promote_types(x.dtype, torch.float32))
    return sums.view(len(x), n_groups, -1).sum(-1, keepdim=True) / (x[0].numel() // n_groups)


# Rectified flow: straight lines from data (t=0) to noise (t=1).
#
# Liu, Gong and Liu, "Flow Straight and Fast" (2022), equation 1, with time as the course has it.


def _stratified_times(n: int, generator: torch.Generator) -> _Tensor:
    """``n`` times in [0, 1), one uniform in each of ``n`` equal bins, in random order, (n,)."""
    u = torch.rand(n, generator=generator, device=generator.device)
    order = torch.randperm(n, generator=generator, device=generator.device)
    # float32 can round (n - 1 + u) / n up to 1; the network is defined below it.
    return ((order + u) / n).clamp(max=1 - 2**-24)


def _logit_normal_times(n: int, mean: float, std: float, generator: torch.Generator) -> _Tensor:
    """``n`` times in (0, 1) whose logits are N(mean, std^2), stratified, (n,).

    The quantile function of a normal, then the logistic (Esser et al., "Scaling Rectified Flow
    Transformers" (2024), section 3.1).
    """
    normal = torch.special.ndtri(_stratified_times(n, generator).clamp(1e-4, 1 - 1e-4))
    return torch.sigmoid(mean + std * normal).clamp(max=1 - 2**-24)


# ========================== Training: batches, optimizer and schedule ===========================

# An adaptation in progress: its batches, the gradients of a step, and its result.

_LEVEL_SAMPLES = 512  # augmented drawings to count the levels in
# On a CPU drawing 256 images takes hardly longer than 32; a GPU draws 2048 in the same time.
_DRAWN_AT_ONCE, _DRAWN_AT_ONCE_ON_GPU = 256, 2048

# Augmented drawings x (B, 1, 28, 28), times t (B, 1, 1, 1), targets, and noises e as x; several
# batches have one more axis in front.
_Batch = tuple[_Tensor, ...]


class _Run:
    """A copy of ``pretrained_model`` that learns ``drawings`` (n, 1, 28, 28) on ``device``."""

    def __init__(
        self,
        device: torch.device,
        pretrained_model: _nn.Module,
        drawings: _Tensor,
        recipe: _Recipe,
        threads: _ThreadPoolExecutor | None = None,
    ) -> None:
        self.recipe = recipe
        self._threads = threads
        self._n_parts = 2 if device.type == "cpu" else 1  # of a batch, for any number of cores
        weight = next(pretrained_model.parameters())
        self._home, self._dtype = weight.device, weight.dtype
        model = _copy.deepcopy(pretrained_model).train()
        model.to(device, torch.float32, memory_format=torch.channels_last)
        _speed_up_norms(model)
        # The call's own random numbers, so that nothing depends on the global ones.
        self._generator = generator = torch.Generator(device).manual_seed(recipe.seed)
        label = _add_class(model)
        model.requires_grad_(True)
        self._augment = _Augmenter(drawings.to(device), recipe, generator)
        self._learner: _Any = _level_posterior(model, self._augment, label, recipe)
        self.weights = _Weights(model, self._learner.head, recipe)
        self._c = torch.full((recipe.batch_size,), label, device=device)
        self.batches = self._draw_on()

    def draw(self) -> _Batch:
        """Draw the next batches, as many together as is efficient."""
        r, g = self.recipe, self._generator
        at_once = _DRAWN_AT_ONCE_ON_GPU if g.device.type == "cuda" else _DRAWN_AT_ONCE
        s, b = max(1, at_once // r.batch_size), r.batch_size
        t = torch.cat([_logit_normal_times(b, r.logit_mean, r.logit_std, g) for _ in range(s)])
        x = self._augment(s * b, t)
        e = torch.randn(x.shape, generator=g, device=x.device)
        parts = (x, t[:, None, None, None], self._learner.targets(x), e)
        return tuple(part.unflatten(0, (s, b)) for part in parts)

    def _draw_on(self) -> _Iterator[_Batch]:
        """Endless batches; a thread draws the next ones while the current ones are used."""
        ahead = None
        while True:
            drawn = ahead.result() if ahead else self.draw()
            ahead = self._threads.submit(self.draw) if self._threads else None
            yield from zip(*drawn, strict=True)

    def gradients(self, batch: _Batch) -> tuple[list[tuple[_Tensor, ...]], _Tensor]:
        """The gradients of each part of a batch, and the batch's flow loss."""
        parts = zip(*(column.chunk(self._n_parts) for column in batch), strict=True)
        on_parts = self._threads.map if self._threads else map
        gradients, losses = zip(*on_parts(self._part_gradients, parts), strict=True)
        return list(gradients), torch.stack(losses).sum()

    def _part_gradients(self, part: _Batch) -> tuple[tuple[_Tensor, ...], _Tensor]:
        """The part's share of the batch's gradients and flow loss."""
        n = len(part[0])
        objective, flow_loss = self._learner.losses(*part, self._c[:n])
        share = n / len(self._c)
        parameters = self.weights.parameters
        gradients = torch.autograd.grad(objective * share, parameters, materialize_grads=True)
        return gradients, flow_loss * share

    def finished(self) -> _nn.Module:
        """The adapted network on the pretrained one's device, in evaluation mode."""
        self.weights.optimizer.zero_grad()
        network: _nn.Module = self._learner
        return network.requires_grad_(True).to(self._home, self._dtype).eval()


def _level_posterior(
    network: _nn.Module, augment: _Augmenter, label: int, recipe: _Recipe
) -> _LevelPosterior:
    """An untrained posterior, with levels and a bank of augmented drawings."""
    device = augment.drawings.device
    times = torch.arange(_LEVEL_SAMPLES, device=device) / _LEVEL_SAMPLES
    levels = _grey_levels(augment.drawings, augment(_LEVEL_SAMPLES, times), augment.operator)
    # Bank and head have random numbers of their own, so batches are the same without them.
    of_bank = _copy.copy(augment)
    of_bank.generator = torch.Generator(device).manual_seed(recipe.seed + 1)
    bank, n = None, min(recipe.bank_images, recipe.steps * recipe.batch_size)
    if n:  # no more images than training draws itself
        parts = [of_bank(len(part)) for part in torch.arange(n).split(_DRAWN_AT_ONCE)]
        bank = _ImageBank(torch.cat(parts), recipe)
    start = torch.Generator(device).manual_seed(recipe.seed + 2)
    network.conv_out.requires_grad_(False)  # the head replaces it
    return _LevelPosterior(network, levels, label, recipe, start, bank)


# The parameters that train, their optimizer and its learning rates.


class _Weights:
    """The trainable parameters of a network and its head, with their optimizer."""

    def __init__(self, model: _nn.Module, head: _nn.Module, recipe: _Recipe) -> None:
        self.recipe = recipe
        of_network = [p for p in model.parameters() if p.requires_grad]
        of_head = list(head.parameters())
        self.parameters = [*of_network, *of_head]
        groups = [
            {"params": of_network, "factor": 1.0},
            {"params": of_head, "factor": recipe.head_lr_factor},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, betas=(0.9, recipe.beta2), weight_decay=0.0, fused=True
        )

    def set_rates(self, share: float, advance: float) -> None:
        """Set the rates of a step at ``share`` of the schedule that covers ``advance`` of it."""
        lr = self.recipe.lr * _lr_factor(self.recipe, share, advance)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]

    def step(self, parts: list[tuple[_Tensor, ...]]) -> None:
        """Update the weights by the sum of the parts' gradients, at the rates that were set."""
        for parameter, first, *others in zip(self.parameters, *parts, strict=True):
            # In the parameter's memory layout, which the fused kernel needs.
            parameter.grad = torch.empty_like(parameter).copy_(first)
            for gradient in others:
                parameter.grad += gradient
        if self.recipe.clip_norm:
            # Clipped apart: the head's gradient is larger, and would slow down the rest.
            for group in self.optimizer.param_groups:
                _nn.utils.clip_grad_norm_(group["params"], self.recipe.clip_norm)
        self.optimizer.step()


def _lr_factor(recipe: _Recipe, share: float, advance: float = 0.0) -> float:
    """Factor of the learning rate for a step from ``share`` to ``share + advance``, in [0, 1]."""
    if share + advance < recipe.warmup:
        return (share + advance) / recipe.warmup
    done = (share - recipe.warmup) / (1 - recipe.warmup)
    done = min(max(done, 0.0), 1.0)
    return 0.5 * (1 + _math.cos(_math.pi * done))


# The schedule's clock: the finished share of a run, by steps or by time.

# Until this share of the deadline only steps count, because the first ones are slow.
_CLOCK_GRACE = 0.1
# The next step may be slower than the slowest so far by this factor.
_STEP_MARGIN = 1.5


class _Clock:
    """The finished share of the schedule, by steps or by time, whichever is larger."""

    def __init__(self, start: float, n_steps: int, deadline_s: float) -> None:
        self._start = start
        self._n_steps = n_steps
        self._deadline_s = deadline_s
        self._last = self.elapsed_s
        self._slowest_step_s = 0.0
        self.step = 0
        self.share = 0.0

    @property
    def elapsed_s(self) -> float:
        return _time.perf_counter() - self._start

    @property
    def is_over(self) -> bool:
        """Whether no step is left: the schedule is done, or a step took too long."""
        return self.share >= 1 or self.elapsed_s >= self._deadline_s

    def tick(self) -> float:
        """Begin another step; returns the share of the schedule that it covers."""
        now = self.elapsed_s
        self._slowest_step_s = max(self._slowest_step_s, now - self._last)
        self._last = now
        self.step += 1
        # If the step after this one might not end in time, this one is the last.
        usable_s = self._deadline_s - _STEP_MARGIN * self._slowest_step_s
        elapsed = now / usable_s if usable_s > 0 else 1.0
        by_time = (elapsed - _CLOCK_GRACE) / (1 - _CLOCK_GRACE)
        before = self.share
        self.share = min(1.0, max(self.share, self.step / self._n_steps, by_time))
        return self.share - before


# ========================================= The machine ==========================================

# The machine: the device to train on, the number format, and torch's settings.

_T = _TypeVar("T")


def _training_device(home: torch.device) -> torch.device:
    """The device to train a network on that is at ``home``: a GPU if there is one."""
    return torch.device("cuda") if home.type == "cpu" and torch.cuda.is_available() else home


def _on_gpu_or_cpu(model: _nn.Module, train: _Callable[[torch.device], _T]) -> _T:
    """Run ``train`` on the best device for ``model``, or on the CPU if that fails."""
    device = _training_device(next(model.parameters()).device)
    try:
        return train(device)
    except RuntimeError as error:
        if device.type == "cpu" or not _is_gpu_failure(error):
            raise
    return train(torch.device("cpu"))


def _is_gpu_failure(error: RuntimeError) -> bool:
    """Whether the GPU caused the error: out of memory, or a device that torch can't use."""
    is_told = any(s in str(error).lower() for s in ("out of memory", "cuda", "cublas", "cudnn"))
    return is_told or isinstance(error, torch.cuda.OutOfMemoryError)


@_contextmanager
def _standard_settings(device: torch.device) -> _Iterator[None]:
    """Run with torch's default settings; the process's own are restored at the end."""
    dtype, mode = torch.get_default_dtype(), torch.get_deterministic_debug_mode()
    on_cpu = torch.empty(0).device.type == "cpu"  # a device context slows every operation down
    try:
        torch.set_default_dtype(torch.float32)
        torch.set_deterministic_debug_mode(0)
        with (
            _nullcontext() if on_cpu else torch.device("cpu"),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_deterministic_debug_mode(mode)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which to compute in ``precision``, "auto", "fp32" or "bf16"."""
    bf16 = _resolve_precision(precision, device) == "bf16"
    # Inside another autocasting block a cache of weights in bf16 would outlive the step.
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)


def _resolve_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto" to "bf16" if the device has units for it, and else to "fp32"."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp32"
    # Not public before torch 2.9, where it is in `torch.cpu.get_capabilities()`.
    is_supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if device.type == "cpu" and is_supported() else "fp32"


# Threads on a CPU: two compute half a step each, and one draws ahead.
#
# Torch's own threads would wait for each other after each of a step's thousand operations; these
# wait once a step.  Results do not depend on the number of cores.


@_contextmanager
def _step_threads(device: torch.device) -> _Iterator[_ThreadPoolExecutor | None]:
    """A pool of three threads on a CPU, in each of which torch uses one; None on a GPU."""
    if device.type != "cpu":
        yield None
        return
    n_threads = torch.get_num_threads()
    with _ThreadPoolExecutor(3, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            torch.set_num_threads(1)
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(n_threads)
