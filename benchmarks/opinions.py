"""Two answers about the same drawings, and what is made of both, compared bin by bin.

For what lies between the two in a straight line the best share of the other has a closed form:
with r the error of the one alone and d the way from it to the other,

    share = sum of r d / sum of d d,

sums over drawings, noises and pixels, weighted by 1 / t^2 as the loss is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.data.runes import NEW_LABEL
from finetune.predict.bank import ImageBank, posterior_mean
from finetune.predict.posterior import LevelPosterior
from finetune.scoring.estimators import NoiseTable

from .adapting import noisy


@dataclass(frozen=True)
class Asked:
    """Some noisy drawings, and what a network and whole augmented drawings make of them."""

    x: Tensor  # (B, 1, 28, 28), as all but two
    x_t: Tensor
    t: Tensor  # (B, 1, 1, 1), as ``effective``
    alone: Tensor  # the network's mean
    own: Tensor  # the images'
    effective: Tensor  # how many of these have a say
    mixed: Tensor  # both, as a call mixes them
    bank: ImageBank


def asked(model: LevelPosterior, drawings: Tensor, table: NoiseTable) -> Iterator[Asked]:
    """What ``model``, without its bank, and that bank say of ``drawings`` (n, 1, 28, 28)."""
    bank, model.bank = model.bank, None
    assert bank is not None
    for x, x_t, t in noisy(drawings, table):
        alone = x_t - t * model(x_t, t, torch.full((len(x_t),), NEW_LABEL))
        own, effective = posterior_mean(bank.images, x_t, t)
        mixed = bank.mixed(alone, own, effective, t, bank.limit)
        yield Asked(x, x_t, t, alone, own, effective, mixed, bank)
    model.bank = bank


class Opinions:
    """Sums for each of ``n_bins`` bins, (n_bins,): losses of one answer, the other, both mixed."""

    def __init__(self, n_bins: int) -> None:
        self.count, self.alone, self.other, self.mixed, self.cross, self.square = torch.zeros(
            6, n_bins, dtype=torch.float64
        )

    def add_to(
        self, bins: Tensor, x: Tensor, alone: Tensor, other: Tensor, mixed: Tensor, t: Tensor
    ) -> None:
        """Answers for drawings ``x``, all (B, 1, 28, 28), at times t (B, 1, 1, 1).

        Args:
            bins: of each drawing its own, (B,); what is beyond the last one counts there.
        """
        n_bins = len(self.count)
        bins = bins.clamp(0, n_bins - 1)
        errors = [(x - mean) / t for mean in (alone, other, mixed)]
        way = (other - alone) / t
        rows = [error.square() for error in errors] + [errors[0] * way, way.square()]
        places = (self.alone, self.other, self.mixed, self.cross, self.square)
        for place, row in zip(places, rows, strict=True):
            place.index_add_(0, bins, row.flatten(1).mean(1).double())
        self.count += bins.bincount(minlength=n_bins)

    @property
    def best_share(self) -> Tensor:
        """Of the other answer, (n_bins,); nan where nothing was added."""
        share: Tensor = self.cross / self.square
        return share

    def told(self, k: int) -> str:
        """Of a bin the three mean losses and the best share, in columns 11 and 12 wide."""
        losses = [part[k] / self.count[k] for part in (self.alone, self.other, self.mixed)]
        return f"{columns(losses)}{self.best_share[k].item():>12.2f}"

    def told_of_all(self) -> str:
        """The three mean losses over all bins, in columns 11 wide."""
        parts = (self.alone, self.other, self.mixed)
        return columns([part.sum() / self.count.sum() for part in parts])


def columns(losses: Iterable[Tensor]) -> str:
    """Losses, 11 wide each."""
    return "".join(f"{loss.item():>11.4f}" for loss in losses)
