"""``python -m benchmarks.shares``: which of two opinions to believe, by how many images have a say.

A call answers with its network's mean of the drawing, mixed with the posterior mean over augmented
drawings (`finetune.bank`).  For what lies between them in a straight line the best share has a
closed form: with r the error of the network's mean and d the way from it to the images' own,

    share = sum of r d / sum of d d,

sums over unseen drawings, noises and pixels, weighted by 1 / t^2 as the loss is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch
from torch import Tensor

from finetune.bank import posterior_mean
from finetune.data import NEW_LABEL
from finetune.errors import run_command
from finetune.posterior import LevelPosterior
from finetune.validation import NoiseTable

from .adapting import adapted_runes, add_adapting_options, noisy
from .figures import mean_and_error

N_BINS = 13  # of images that have a say: the last one from 4096 on


class Sums:
    """What is summed for each bin, (N_BINS,): bin k has from 2^k images with a say on."""

    def __init__(self) -> None:
        self.count, self.alone, self.images, self.mixed, self.cross, self.square = torch.zeros(
            6, N_BINS, dtype=torch.float64
        )

    def add(
        self, x: Tensor, alone: Tensor, images: Tensor, mixed: Tensor, effective: Tensor, t: Tensor
    ) -> None:
        """Answers for drawings ``x``, all (B, 1, 28, 28), by two opinions and by their mixture.

        Args:
            effective: how many images have a say, (B, 1, 1, 1).
            t: times (B, 1, 1, 1).
        """
        bins = effective.flatten().log2().long().clamp(0, N_BINS - 1)
        errors = [(x - mean) / t for mean in (alone, images, mixed)]
        way = (images - alone) / t
        rows = [error.square() for error in errors] + [errors[0] * way, way.square()]
        places = (self.alone, self.images, self.mixed, self.cross, self.square)
        for place, row in zip(places, rows, strict=True):
            place.index_add_(0, bins, row.flatten(1).mean(1).double())
        self.count += bins.bincount(minlength=N_BINS)

    @property
    def best_share(self) -> Tensor:
        """Of the images' own mean, (N_BINS,); nan where nothing was added."""
        share: Tensor = self.cross / self.square
        return share


@torch.inference_mode()
def ask(model: LevelPosterior, drawings: Tensor, table: NoiseTable, sums: Sums) -> None:
    """Add both opinions of ``model`` on ``drawings`` (n, 1, 28, 28), which it has not seen."""
    bank, model.bank = model.bank, None
    assert bank is not None
    for x, x_t, t in noisy(drawings, table):
        c = torch.full((len(x_t),), NEW_LABEL)
        alone = x_t - t * model(x_t, t, c)
        own, effective = posterior_mean(bank.images, x_t, t)
        mixed = bank.mixed(alone, own, effective, t)
        sums.add(x, alone, own, mixed, effective, t)
    model.bank = bank


def table_of(sums: Sums) -> Iterable[str]:
    """Lines for people; losses are means over the bin."""
    heads = ("images with a say", "of all", "network", "images", "mixed", "best share")
    yield "{:<18}{:>8}{:>11}{:>11}{:>11}{:>12}".format(*heads)
    parts, n_all = (sums.alone, sums.images, sums.mixed), sums.count.sum().item()
    for k in range(N_BINS):
        n = sums.count[k].item()
        if n == 0:
            continue
        name = f"{2**k} to {2 ** (k + 1)}" if k < N_BINS - 1 else f"{2**k} and more"
        losses = _columns([part[k] / n for part in parts])
        yield f"{name:<18}{n / n_all:>8.1%}{losses}{sums.best_share[k].item():>12.2f}"
    yield f"{'all':<18}{'':>8}{_columns([part.sum() / n_all for part in parts])}"


def _columns(losses: Iterable[Tensor]) -> str:
    return "".join(f"{loss.item():>11.4f}" for loss in losses)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shares", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_adapting_options(parser, replicates=4)
    arguments = parser.parse_args(argv)
    sums, ratios = Sums(), []
    for case in adapted_runes(arguments):
        assert isinstance(case.model, LevelPosterior)
        mixed, alone = sums.mixed.sum().item(), sums.alone.sum().item()
        test = case.split.test
        table = NoiseTable(len(test), n_replicates=arguments.replicates, name=case.rune)
        ask(case.model, test, table, sums)
        ratios.append((sums.mixed.sum().item() - mixed) / (sums.alone.sum().item() - alone))
    for line in table_of(sums):
        print(line)
    ratio, error = mean_and_error(ratios)
    print(f"mixed over the network alone: {ratio:.3f} ± {error:.3f} (over runes)")
    return 0


if __name__ == "__main__":
    run_command(main)
