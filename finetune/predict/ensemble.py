"""Several networks that learn the same drawings, and answer with the mean of their velocities.

A mean of estimators has at most the mean of their errors, and less the more these differ
(Hansen and Salamon, "Neural Network Ensembles" (1990)).  Networks that start and draw differently
differ by more than what a network would gain by as many steps more, once it has made enough.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..train.run import Run
from ..train.threaded import ThreadedSteps
from .bank import ImageBank, pooled
from .posterior import LevelPosterior

_TRIED_STEPS = 4  # to see how long one takes; the first is slower


class VelocityMean(nn.Module):
    """The mean of what ``members``, networks of the same classes, answer.

    Args:
        bank: of all of them, which is asked once, about the newest class.
    """

    def __init__(self, members: Sequence[nn.Module], bank: ImageBank | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.bank = bank
        self.n_channels_img = members[0].n_channels_img
        self.n_classes: Any = members[0].n_classes

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """The velocity at ``x_t`` (B, 1, 28, 28) for times t (B, 1, 1, 1) and labels c (B,)."""
        total: Tensor = sum(member(x_t, t, c) for member in self.members)
        velocity = total / len(self.members)
        asked = c == self.n_classes - 1
        if self.bank is not None and asked.any():
            velocity[asked] = self.bank.corrected(velocity[asked], x_t[asked], t.to(x_t)[asked])
        return velocity


def answer_as_one(members: Sequence[nn.Module]) -> nn.Module:
    """One network that answers as all ``members`` do on average.

    Banks of theirs become one of all: the more images, the better.
    """
    if len(members) == 1:
        return members[0]
    owners = [member for member in members if isinstance(member, LevelPosterior)]
    banks = [owner.bank for owner in owners if owner.bank is not None]
    for owner in owners:
        owner.bank = None
    return VelocityMean(members, pooled(banks) if banks else None)


def count_members(runs: Sequence[Run], device: torch.device, left_s: float) -> int:
    """How many networks should learn in the place of each of ``runs``, which have not begun.

    On a GPU as many as the recipe allows, for side by side they take little more time than one.
    On a CPU no more than there are threads, and as many as can make the recipe's
    ``member_steps`` in the ``left_s`` that are left: tried, for some steps of networks that are
    thrown away.
    """
    recipe = runs[0].recipe
    if recipe.steps < recipe.member_steps:
        return 1
    if device.type == "cuda":
        return recipe.members
    n = min(recipe.members, torch.get_num_threads() // len(runs)) if device.type == "cpu" else 1
    while n > 1 and left_s < recipe.member_steps * _step_seconds(runs[0], n):
        n -= 1
    return max(n, 1)


def _step_seconds(run: Run, n: int) -> float:
    """How long a step of ``n`` networks takes, each in threads of its own."""
    seconds = []
    with ThreadedSteps([run.sibling(k) for k in range(n)]) as steps:
        for _ in range(_TRIED_STEPS):
            steps.draw()
            start = time.perf_counter()
            steps.train(0.0, 0.0)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
