"""The path of the round pen behind a bitmap, and bitmaps drawn along such a path.

Omniglot's canvas made ink of every pixel whose centre lies within 2.5 pixels of the pen's path.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .descent import descend

_TRACE_STEPS = 40
_FIRST_LR, _LAST_LR = 0.15, 0.03  # pixels
_FIRST_EDGE, _LAST_EDGE = 0.6, 0.2  # softness of the stroke's edge while fitting, pixels
_STRAIGHT_WEIGHT = 0.9
_LINKED = 1.5  # pixels of the skeleton within this distance are neighbours
_OUTSIDE = -50.0  # place of the points that pad shorter paths


def trace(bitmaps: Tensor, seen: Tensor, radius: float) -> tuple[Tensor, Tensor, float]:
    """Find the paths along which a pen draws ``bitmaps`` (n, H, H), 1 is ink.

    Gradient descent moves the skeleton's points until discs around them cover the ink alone.
    Returns the points (n, P, 2), x and y in pixels whose centres are whole numbers; which of them
    are not padding (n, P); and wrong bits over ink bits of the worst drawing.

    Args:
        seen: rows and columns (H,) whose bits are known; only these count.
        radius: radius of the pen in pixels.
    """
    paths = [line.nonzero().flip(1).float() for line in skeletons(bitmaps > 0.5)]
    points = nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=_OUTSIDE)
    points = F.pad(points, (0, 0, 0, 1), value=_OUTSIDE)  # the only point of a blank drawing
    present = points[..., 0] != _OUTSIDE
    linked = (torch.cdist(points, points) < _LINKED).float()  # to itself, too
    n_linked = linked.sum(-1, keepdim=True)
    i = torch.arange(len(seen), device=seen.device)[seen].float()
    places = torch.stack(torch.meshgrid(i, i, indexing="xy"), -1).view(1, -1, 2)
    bits = bitmaps[:, seen][:, :, seen].flatten(1)

    def loss(points: Tensor, share: float) -> Tensor:
        edge = _FIRST_EDGE + share * (_LAST_EDGE - _FIRST_EDGE)
        # A pixel is ink if its nearest point is near enough.
        index = torch.cdist(places, points.detach()).argmin(2)[..., None].expand(-1, -1, 2)
        distance = ((places - points.gather(1, index)).square().sum(-1) + 1e-6).sqrt()
        wrong = (torch.sigmoid((radius - distance) / edge) - bits).square().sum()
        # Pull points to the middle of their neighbours, except ends, which have only one.
        bend = (linked @ points / n_linked - points).square().sum(-1)
        return wrong + _STRAIGHT_WEIGHT * (bend * (n_linked[..., 0] > 2)).sum()

    points = descend(loss, points, _TRACE_STEPS, (_FIRST_LR, _LAST_LR))
    ink = torch.cdist(places, points).amin(2) <= radius
    error = (ink != (bits > 0.5)).sum(1) / bits.sum(1).clamp(min=1)  # (n,)
    return points, present, error.max().item()


def stamp(points: Tensor, present: Tensor, radius: float, seen: Tensor) -> Tensor:
    """Ink within ``radius`` of any of ``points`` (b, P, 2), at the seen pixels only.

    A disc covers one interval of each row.  Its ends are counted up and down, and a pixel is ink
    if the running sum is positive.

    Args:
        points: x, y in pixels, as from `trace`; they may be outside.
        seen: rows and columns to draw, (H,), k of them.

    Returns:
        Bitmaps (b, k, k) of 0 and 1.
    """
    b, h, k = len(points), len(seen), int(seen.sum())
    before = F.pad(seen.long().cumsum(0), (1, 0))  # (H + 1,): number of seen columns left of each
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


def skeletons(ink: Tensor) -> Tensor:
    """Lines one pixel wide in the middle of the strokes of ``ink`` (n, H, W), both boolean.

    Zhang and Suen, "A fast parallel algorithm for thinning digital patterns" (1984).
    """
    ink = F.pad(ink, (1, 1, 1, 1))
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
            near_left = F.max_pool2d(left.float(), 3, 1, 1) > 0
            ink = left | (ink & ~near_left)  # keep blocks of 2 x 2, which would vanish
    return ink[:, 1:-1, 1:-1]
