"""Adam on one tensor: how paths, bitmaps and maps are fitted to drawings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def descend(
    loss: Callable[[Tensor, float], Tensor], start: Tensor, n: int, lr: tuple[float, float]
) -> Tensor:
    """Where ``n`` steps of Adam lead from ``start``.

    Args:
        loss: of a tensor like ``start``, at a share of the steps in [0, 1).
        lr: learning rates at the first and after the last step; in a straight line between.
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
