"""``python -m benchmarks.gap``: the loss on drawings of three kinds, by noise level.

The ten drawings themselves, augmented ones and ten that the call did not see, by the same network
and the same noise.  What a network that has learnt enough loses on augmented drawings is what these
leave open: nobody who believes in them does better.  Unseen drawings that cost more are unlike the
augmented ones; where they cost less, augmented drawings are more varied than real ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from finetune.augment.mix import Augmenter
from finetune.data.runes import NEW_LABEL
from finetune.errors import run_command
from finetune.flow import image_losses
from finetune.recipe import Recipe
from finetune.scoring.estimators import T_BINS, NoiseTable

from .adapting import adapted_runes, add_adapting_options, noise_for
from .figures import mean_and_error

DrawingsFor = Callable[[Tensor], Tensor]
KINDS = ("trained on", "augmented", "unseen")
_BATCH = 100
_OTHER_SEED = 1  # of augmented drawings: not those that the network has learnt


@torch.inference_mode()
def losses_by_t(model: nn.Module, drawings_for: DrawingsFor, table: NoiseTable) -> Tensor:
    """Mean losses in ten equal bins of t, (T_BINS,), of images that may depend on their times.

    Args:
        drawings_for: times (table.n_images * table.n_strata,) to as many images (n, 1, 28, 28):
            image i has the times from i * n_strata on.
        table: with strata of one width.
    """
    sums, counts = torch.zeros(2, T_BINS, dtype=torch.float64)
    for r in range(table.n_replicates):
        times, noises = table.replicate(r)
        t, e = times.flatten(), noises.flatten(0, 1)
        parts = (a.split(_BATCH) for a in (drawings_for(t), e, t[:, None, None, None]))
        losses = torch.cat([_losses(model, *part) for part in zip(*parts, strict=True)])
        bins = (t * T_BINS).long()
        sums.index_add_(0, bins, losses.double())
        counts += bins.bincount(minlength=T_BINS)
    means: Tensor = sums / counts
    return means


def _losses(model: nn.Module, x: Tensor, e: Tensor, t: Tensor) -> Tensor:
    return image_losses(model, x, e, t, torch.full((len(x),), NEW_LABEL))


def _unchanged(drawings: Tensor) -> DrawingsFor:
    return lambda t: drawings.repeat_interleave(len(t) // len(drawings), 0)


def _augmented(drawings: Tensor, recipe: Recipe) -> DrawingsFor:
    augment = Augmenter(drawings, recipe, torch.Generator().manual_seed(_OTHER_SEED))
    return lambda t: augment(len(t), t)


def _row(name: str, values: Tensor) -> str:
    return f"{name:<26}{values.mean():.4f}  " + " ".join(f"{v:.4f}" for v in values.tolist())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gap", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_adapting_options(parser, replicates=8)
    arguments = parser.parse_args(argv)
    cases = adapted_runes(arguments)
    found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    print(f"{'':<26}{'loss':<8}by t, in {T_BINS} equal bins from 0 to 1")
    for case in cases:
        split = case.split
        drawings = (
            _unchanged(split.train),
            _augmented(split.train, case.recipe),
            _unchanged(split.test),
        )
        sizes = (len(split.train), len(split.test), len(split.test))
        for kind, drawings_for, n in zip(KINDS, drawings, sizes, strict=True):
            table = noise_for(case, n, arguments.replicates)
            found[kind].append(losses_by_t(case.model, drawings_for, table))
            tqdm.write(_row(f"{case.rune}, {kind}", found[kind][-1]))
    by_kind = {kind: torch.stack(rows) for kind, rows in found.items()}
    for kind, rows in by_kind.items():
        print(_row(f"mean, {kind}", rows.mean(0)))
    ratios = by_kind["unseen"].mean(1) / by_kind["augmented"].mean(1)
    ratio, error = mean_and_error(ratios.tolist())
    print(f"unseen over augmented: {ratio:.3f} ± {error:.3f} (over runes)")
    return 0


if __name__ == "__main__":
    run_command(main)
