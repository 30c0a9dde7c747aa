"""Adam on one tensor, to fit paths, bitmaps and maps to drawings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def descend(
    loss: Callable[[Tensor, float], Tensor], start: Tensor, n: int, lr: tuple[float, float]
) -> Tensor:
    """Make ``n`` steps of Adam from ``start``; returns the result.

    Args:
        loss: function of a tensor like ``start`` and the finished share of steps in [0, 1).
        lr: learning rates at the first and after the last step; linear between them.
    """
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
