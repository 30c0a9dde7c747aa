"""``python -m benchmarks.augmentations``: how well augmented drawings cover unseen ones.

At high noise the best possible velocity follows from the posterior mean of the drawing,
E[x | x_t], under the distribution of augmented drawings (a network that matches it is at its
limit).  With many augmented drawings of ten (`finetune.bank.posterior_mean`), its loss on the
*other* ten drawings, |E[x | x_t] - x|^2 / t^2, judges a mix of augmentations without any
training.  The baseline is the default recipe's mix.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from finetune.augment import Augmenter
from finetune.bank import posterior_mean
from finetune.challenge import add_data_options
from finetune.data import RuneSource, choose_runes, open_source, split_drawings
from finetune.errors import UserError, run_command
from finetune.recipe import Recipe, RecipeError

from .arguments import positive

TIMES = (0.4, 0.55, 0.7, 0.85)
_NOISES = 8  # for each drawing and time
_BATCH = 2000


def posterior_mean_losses(augment: Augmenter, samples: int, test: Tensor, seed: int) -> list[float]:
    """Velocity loss of the posterior mean at each of `TIMES`.

    ``samples`` drawings of ``augment`` for each time stand for the distribution, ``test``
    (n, 1, 28, 28) is judged.
    """
    x = test.repeat(_NOISES, 1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for t in TIMES:
        times = torch.full((_BATCH,), t)
        augmented = torch.cat([augment(_BATCH, times) for _ in range(math.ceil(samples / _BATCH))])
        x_t = (1 - t) * x + t * torch.randn(x.shape, generator=generator)
        mean, _ = posterior_mean(augmented.flatten(1), x_t, torch.full((len(x), 1, 1, 1), t))
        losses.append(((mean - x).square().mean() / t**2).item())
    return losses


def judge(
    recipe: Recipe, source: RuneSource, runes: list[str], resize: Any, splits: int, samples: int
) -> Tensor:
    """Losses for each (rune, split) and time, (len(runes) * splits, len(TIMES))."""
    rows = []
    work = list(itertools.product(runes, range(splits)))
    for rune, split_seed in tqdm(work, unit="split", leave=False):
        split = split_drawings(source.drawings(rune, resize), split_seed)
        augment = Augmenter(split.train, recipe, torch.Generator().manual_seed(recipe.seed))
        rows.append(posterior_mean_losses(augment, samples, split.test, split_seed))
    return torch.tensor(rows)


def _mixes(texts: list[str]) -> list[dict[str, Any]]:
    try:
        mixes = [json.loads(text) for text in texts]
        for mix in mixes:
            Recipe.from_dict(mix)
    except (json.JSONDecodeError, RecipeError, TypeError, AttributeError) as error:
        raise UserError(f"""--mix: {error}; write JSON like '{{"elastic_px": 0.3}}'""") from error
    return mixes


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.augmentations", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_data_options(parser)
    parser.add_argument("--runes", nargs="+", metavar="RUNE", help="default: five, spread evenly")
    parser.add_argument("--splits", type=positive, default=2)
    parser.add_argument(
        "--samples", type=positive, default=16_000, help="augmented drawings for each time"
    )
    parser.add_argument("--mix", nargs="+", default=[], help="JSON with fields of a recipe")
    arguments = parser.parse_args(argv)
    mixes = _mixes(arguments.mix)
    source = open_source(arguments.source, arguments.data)
    runes = choose_runes(source, arguments.runes, 5)
    options = (source, runes, arguments.resize, arguments.splits, arguments.samples)
    baseline = judge(Recipe(), *options)
    print(f"{'':<42}{'loss':>8}  {'ratio':<16}" + "".join(f"t={t:<8}" for t in TIMES))
    for mix in [{}, *mixes]:
        losses = judge(Recipe.from_dict(mix), *options) if mix else baseline
        ratio = (losses.mean() / baseline.mean()).item()
        by_split = losses.mean(1) - ratio * baseline.mean(1)
        error = (by_split.std() / math.sqrt(len(by_split)) / baseline.mean()).item()
        by_time = "".join(f"{v:<10.4f}" for v in losses.mean(0).tolist())
        name = json.dumps(mix) if mix else "default"
        print(f"{name:<42}{losses.mean():>8.4f}  {ratio:.3f} ± {error:.3f}   {by_time}", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
