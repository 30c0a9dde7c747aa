"""``python -m benchmarks.ablation``: what a change of the recipe does, at the same cost.

Every recipe adapts the same network to the same drawings in the same number of drawn images and
is scored on the same noise, so that differences are paired.  Beside the means stand those by
noise level, and what the posterior mean over augmented drawings (as for t = 1) reaches there: a
network that matches it at high noise has nothing left to learn from these augmentations.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from finetune.adapt import adapt
from finetune.augment.mix import Augmenter
from finetune.challenge import add_data_options
from finetune.data.options import open_asked
from finetune.data.runes import NEW_LABEL, choose_runes
from finetune.errors import UserError, run_command
from finetune.model.checkpoints import list_networks, load_network
from finetune.predict.bank import posterior_mean
from finetune.recipe import Recipe, RecipeError
from finetune.scoring.estimators import T_BINS, LossTable, NoiseTable, estimate

from .arguments import positive
from .figures import mean_and_error

_NO_DEADLINE_S = 1e6
_BATCH = 2000


class PosteriorMean(nn.Module):
    """The velocity of least error if these drawings (m, 1, 28, 28) were all there are."""

    def __init__(self, drawings: Tensor) -> None:
        super().__init__()
        self.drawings = nn.Parameter(drawings.flatten(1), requires_grad=False)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """As networks are called; labels are not looked at."""
        t = t.clamp(min=1e-6)
        squares = self.drawings.square().sum(1)
        return (x_t - posterior_mean(self.drawings, squares, x_t, t)[0]) / t


def _recipes(base: dict[str, Any], texts: list[str]) -> dict[str, Recipe]:
    """Recipes by name: the base, and the base with each change."""
    try:
        changes = [{}, *(json.loads(text) for text in texts)]
        return {
            json.dumps(change) if change else "the recipe": Recipe.from_dict(
                {**base, **change, "deadline_s": _NO_DEADLINE_S}
            )
            for change in changes
        }
    except (json.JSONDecodeError, RecipeError, TypeError) as error:
        raise UserError(f"""--change: {error}; write JSON like '{{"bank_limit": 0}}'""") from error


def _describe(losses: list[LossTable], base: list[LossTable]) -> str:
    """Mean, ratio to the base with its error over instances, and means by noise level."""
    mean = torch.tensor([loss.mean for loss in losses])
    ratios = mean / torch.tensor([loss.mean for loss in base])
    ratio, error = mean_and_error(ratios.tolist())
    bins = torch.tensor([loss.per_t_bin for loss in losses]).mean(0).tolist()
    by_bin = " ".join(f"{value:.4f}" for value in bins)
    return f"{mean.mean():.4f}  {ratio:.3f} ± {error:.3f}  {by_bin}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_data_options(parser)
    parser.add_argument("--runes", nargs="+", metavar="RUNE", help="default: two, spread evenly")
    parser.add_argument("--splits", type=positive, default=1)
    parser.add_argument("--network", type=Path, help="a network's file; default: the embedded one")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--change", nargs="+", default=[], help="JSON with fields of a recipe")
    parser.add_argument(
        "--replicates", type=positive, default=8, help="noises for each drawing and t"
    )
    parser.add_argument(
        "--samples", type=positive, default=16_000, help="of the posterior mean, drawn as for t = 1"
    )
    arguments = parser.parse_args(argv)
    recipes = _recipes({"steps": arguments.steps}, arguments.change)
    source = open_asked(arguments)
    runes = choose_runes(source, arguments.runes, 2)
    network = load_network(arguments.network or list_networks()[0])

    work = list(itertools.product(runes, range(arguments.splits)))
    losses: dict[str, list[LossTable]] = {name: [] for name in recipes}
    bound: list[LossTable] = []
    for rune, seed in tqdm(work, unit="split"):
        split = source.split(rune, arguments.resize, seed, arguments.train)
        # Each has noise of its own: that of a study's trials on it.
        table = NoiseTable(
            len(split.test), n_replicates=arguments.replicates, name=f"{rune}/{seed}"
        )
        for name, recipe in tqdm(recipes.items(), unit="recipe", leave=False):
            model = adapt(network, split.train, recipe).model
            losses[name].append(estimate(model, split.test, NEW_LABEL, table))
        augment = Augmenter(split.train, recipes["the recipe"], torch.Generator().manual_seed(1))
        n_batches = math.ceil(arguments.samples / _BATCH)
        samples = torch.cat([augment(_BATCH) for _ in range(n_batches)])
        bound.append(estimate(PosteriorMean(samples), split.test, NEW_LABEL, table))

    base = losses["the recipe"]
    print(f"{'':<34}{'loss':<8}{'ratio':<15}by t, in {T_BINS} equal bins from 0 to 1")
    for name, found in losses.items():
        print(f"{name:<34}{_describe(found, base)}")
    print(f"{f'posterior mean of {arguments.samples}':<34}{_describe(bound, base)}")
    return 0


if __name__ == "__main__":
    run_command(main)
