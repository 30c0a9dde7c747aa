"""``python -m benchmarks.shares``: which of two opinions to believe, by how many images have a say.

A call answers with its network's mean of the drawing, mixed with the posterior mean over augmented
drawings (`finetune.predict.bank`).  The best share of these is that of `benchmarks.opinions`, over
unseen drawings.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch
from torch import Tensor

from finetune.errors import run_command
from finetune.predict.posterior import LevelPosterior
from finetune.scoring.estimators import NoiseTable

from .adapting import adapted_runes, add_adapting_options, noise_for
from .figures import mean_and_error
from .opinions import Opinions, asked

N_BINS = 13  # of images that have a say: the last one from 4096 on


class Sums(Opinions):
    """Of a network and its images: bin k has from 2^k images with a say on."""

    def __init__(self) -> None:
        super().__init__(N_BINS)

    def add(
        self, x: Tensor, alone: Tensor, images: Tensor, mixed: Tensor, effective: Tensor, t: Tensor
    ) -> None:
        """As `Opinions.add_to`; ``effective``: how many images have a say, (B, 1, 1, 1)."""
        self.add_to(effective.flatten().log2().long(), x, alone, images, mixed, t)


@torch.inference_mode()
def ask(model: LevelPosterior, drawings: Tensor, table: NoiseTable, sums: Sums) -> None:
    """Add both opinions of ``model`` on ``drawings`` (n, 1, 28, 28), which it has not seen."""
    for a in asked(model, drawings, table):
        sums.add(a.x, a.alone, a.own, a.mixed, a.effective, a.t)


def table_of(sums: Sums) -> Iterable[str]:
    """Lines for people; losses are means over the bin."""
    heads = ("images with a say", "of all", "network", "images", "mixed", "best share")
    yield "{:<18}{:>8}{:>11}{:>11}{:>11}{:>12}".format(*heads)
    for k in range(N_BINS):
        share = sums.count[k].item() / sums.count.sum().item()
        if share == 0:
            continue
        name = f"{2**k} to {2 ** (k + 1)}" if k < N_BINS - 1 else f"{2**k} and more"
        yield f"{name:<18}{share:>8.1%}{sums.told(k)}"
    yield f"{'all':<18}{'':>8}{sums.told_of_all()}"


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
        table = noise_for(case, len(test), arguments.replicates)
        ask(case.model, test, table, sums)
        ratios.append((sums.mixed.sum().item() - mixed) / (sums.alone.sum().item() - alone))
    for line in table_of(sums):
        print(line)
    ratio, error = mean_and_error(ratios)
    print(f"mixed over the network alone: {ratio:.3f} ± {error:.3f} (over runes)")
    return 0


if __name__ == "__main__":
    run_command(main)
