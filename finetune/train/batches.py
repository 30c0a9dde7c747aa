"""What training learns from: augmented drawings, each for a time, with noise and targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..augment.mix import Augmenter
from ..flow import stratified_times
from ..recipe import Recipe

# Drawing 256 images takes a CPU hardly longer than drawing 32, and a GPU no longer than 2048.
_DRAWN_AT_ONCE, _DRAWN_ON_GPU = 256, 2048


class Batch(NamedTuple):
    """Of B images; or of S batches, with one more axis in front."""

    x: Tensor  # (B, 1, 28, 28)
    t: Tensor  # (B, 1, 1, 1)
    targets: Tensor  # (B, ...)
    e: Tensor  # noise, as x


def drawn_at_once(device: torch.device) -> int:
    """How many images it pays to draw together."""
    return _DRAWN_ON_GPU if device.type == "cuda" else _DRAWN_AT_ONCE


def draw_batches(
    augment: Augmenter,
    recipe: Recipe,
    generator: torch.Generator,
    targets: Callable[[Tensor], Tensor],
) -> Batch:
    """As many batches as it pays to draw together; ``targets`` tells those of images."""
    b, at_once = recipe.batch_size, drawn_at_once(generator.device)
    s = max(1, at_once // b)
    times = torch.cat([_draw_times(recipe, generator) for _ in range(s)])
    # In parts: memory grows with how many are drawn at once.
    x = torch.cat([augment(len(part), part) for part in times.split(at_once)])
    e = torch.randn(x.shape, generator=generator, device=x.device)
    parts = (x, times[:, None, None, None], targets(x), e)
    return Batch(*(part.unflatten(0, (s, b)) for part in parts))


def _draw_times(recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Times for one batch, (B,) in [0, 1)."""
    n = recipe.batch_size
    if recipe.time_sampling == "uniform":
        return torch.rand(n, generator=generator, device=generator.device)
    u = stratified_times(n, generator)
    if recipe.time_sampling == "stratified":
        return u
    # The quantile function of a normal, then the logistic: stratified logit-normal times
    # (Esser et al. 2024, section 3.1).
    normal = torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))
    return torch.sigmoid(recipe.logit_mean + recipe.logit_std * normal).clamp(max=1 - 2**-24)
