"""A network for each of some runes, adapted without a clock: what several benchmarks look into."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from tqdm import tqdm

from finetune.adapt import adapt
from finetune.challenge import add_data_options
from finetune.data.options import open_asked
from finetune.data.runes import Split, choose_runes
from finetune.errors import UserError
from finetune.flow import interpolate
from finetune.model.checkpoints import list_networks, load_network
from finetune.recipe import Recipe, RecipeError
from finetune.scoring.estimators import NoiseTable

from .arguments import positive

_NO_DEADLINE_S = 1e6
_BATCH = 100
_LEAST_T = 1e-6


@dataclass(frozen=True)
class AdaptedRune:
    """What a call has made of a part of the rune's drawings; it has not seen the others."""

    rune: str
    split: Split
    recipe: Recipe
    model: nn.Module


def add_adapting_options(parser: argparse.ArgumentParser, replicates: int) -> None:
    """Which runes, from which network, how long, and how well to estimate."""
    add_data_options(parser)
    parser.add_argument("--runes", nargs="+", metavar="RUNE", help="default: four, spread evenly")
    parser.add_argument("--network", type=Path, help="a network's file; default: the embedded one")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument(
        "--replicates", type=positive, default=replicates, help="noises for each drawing and t"
    )


def adapted_runes(arguments: argparse.Namespace) -> Iterator[AdaptedRune]:
    """One after the other, as the options say, by the default recipe with one network.

    Raises:
        UserError: an option names what there is not.
    """
    try:
        recipe = Recipe(steps=arguments.steps, deadline_s=_NO_DEADLINE_S)
    except RecipeError as error:
        raise UserError(f"--steps: {error}") from error
    source = open_asked(arguments)
    runes = choose_runes(source, arguments.runes, 4)
    network = load_network(arguments.network or list_networks()[0])

    def adapted(rune: str) -> AdaptedRune:
        split = source.split(rune, arguments.resize, 0, arguments.train)
        return AdaptedRune(rune, split, recipe, adapt(network, split.train, recipe).model)

    return map(adapted, tqdm(runes, unit="rune"))


def noise_for(case: AdaptedRune, n_images: int, replicates: int) -> NoiseTable:
    """The rune's own noise, in strata of one width: in a bin of t all times count alike."""
    return NoiseTable(n_images, n_replicates=replicates, name=case.rune, equal=True)


def noisy(drawings: Tensor, table: NoiseTable) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What ``table`` asks of ``drawings`` (n, 1, 28, 28): drawings, x_t and times, by batches."""
    for r in range(table.n_replicates):
        times, noises = table.replicate(r)
        t = times.flatten()[:, None, None, None].clamp(min=_LEAST_T)
        x = drawings.repeat_interleave(times.shape[1], 0)
        parts = (part.split(_BATCH) for part in (x, noises.flatten(0, 1), t))
        for x_part, e_part, t_part in zip(*parts, strict=True):
            yield x_part, interpolate(x_part, e_part, t_part), t_part
