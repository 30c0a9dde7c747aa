"""``python -m benchmarks.augmentations``: how well augmented drawings cover unseen ones.

At high noise the best possible velocity follows from the posterior mean of the drawing,
E[x | x_t], under the distribution of augmented drawings (a network that matches it is at its
limit).  With many augmented drawings of ten (`finetune.predict.bank.posterior_mean`), its loss
on the *other* ten drawings, |E[x | x_t] - x|^2 / t^2, judges a mix of augmentations without any
training.  The baseline is the default recipe's mix.

A call has not seen the other ten.  ``--within`` shows what its own ten could tell it: each mix is
also judged on two of them at a time with the other eight alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from finetune.augment.mix import Augmenter
from finetune.challenge import add_data_options
from finetune.data.options import open_asked
from finetune.data.runes import RuneSource, choose_runes
from finetune.errors import UserError, run_command
from finetune.predict.bank import posterior_mean
from finetune.recipe import Recipe, RecipeError

from .arguments import positive
from .figures import ratio

TIMES = (0.4, 0.55, 0.7, 0.85)
_NOISES = 8  # for each drawing and time
_BATCH = 500
_LEFT_OUT = 2  # drawings at a time


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
        drawn = [augment(_BATCH, times) for _ in range(math.ceil(samples / _BATCH))]
        augmented = torch.cat(drawn).flatten(1)
        x_t = (1 - t) * x + t * torch.randn(x.shape, generator=generator)
        t_of_each, squares = torch.full((len(x), 1, 1, 1), t), augmented.square().sum(1)
        mean, _ = posterior_mean(augmented, squares, x_t, t_of_each)
        losses.append(((mean - x).square().mean() / t**2).item())
    return losses


@dataclass(frozen=True)
class Judged:
    """Losses for each (rune, split) and time, (len(runes) * splits, len(TIMES))."""

    unseen: Tensor
    within: Tensor | None  # of drawings that were left out of the ten, if they were asked


def left_out(drawings: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The drawings (n, ...) without some of them, and these; each is left out once."""
    for k in range(0, len(drawings), _LEFT_OUT):
        rest = torch.cat([drawings[:k], drawings[k + _LEFT_OUT :]])
        yield rest, drawings[k : k + _LEFT_OUT]


def judge(
    recipe: Recipe,
    source: RuneSource,
    runes: list[str],
    resize: Any,
    splits: int,
    samples: int,
    within: bool,
    n_train: int | None = None,
) -> Judged:
    """The recipe's mix of augmentations, on unseen drawings and, if asked, ``within`` the seen."""

    def losses(train: Tensor, test: Tensor, seed: int) -> list[float]:
        augment = Augmenter(train, recipe, torch.Generator().manual_seed(recipe.seed))
        return posterior_mean_losses(augment, samples, test, seed)

    unseen, own = [], []
    work = list(itertools.product(runes, range(splits)))
    for rune, split_seed in tqdm(work, unit="split", leave=False):
        split = source.split(rune, resize, split_seed, n_train)
        unseen.append(losses(split.train, split.test, split_seed))
        if within:
            parts = [losses(rest, out, split_seed) for rest, out in left_out(split.train)]
            own.append(torch.tensor(parts).mean(0).tolist())
    return Judged(torch.tensor(unseen), torch.tensor(own) if within else None)


def said_within(names: Sequence[str], judged: Sequence[Judged]) -> Iterator[str]:
    """Lines on what the ten drawings tell of each mix; the first one is the baseline."""
    unseen = torch.stack([one.unseen.mean(1) for one in judged])  # (mixes, splits)
    within = torch.stack([one.within.mean(1) for one in judged if one.within is not None])
    yield "within the ten drawings that a call has:"
    for name, losses, others in zip(names[1:], within[1:], unseen[1:], strict=True):
        both = torch.stack([losses / within[0], others / unseen[0]])
        agreement = both.corrcoef()[0, 1].item()
        yield f"{name:<42}  {_over(losses, within[0])}, correlation {agreement:+.2f}"
    for who, by in (("its own ten prefer", within), ("unseen ones prefer", unseen)):
        chosen = unseen.gather(0, by.argmin(0, keepdim=True))[0]
        yield f"each split with the mix that {who}: {_over(chosen, unseen[0])} unseen"


def _over(losses: Tensor, baseline: Tensor) -> str:
    """The ratio of their means, both (n,), with its error."""
    return "{:.3f} ± {:.3f}".format(*ratio(losses.tolist(), baseline.tolist()))


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
    parser.add_argument(
        "--within", action="store_true", help="judge on drawings left out of the ten, too"
    )
    arguments = parser.parse_args(argv)
    mixes = _mixes(arguments.mix)
    source = open_asked(arguments)
    runes = choose_runes(source, arguments.runes, 5)
    options = (source, runes, arguments.resize, arguments.splits, arguments.samples)
    names = ["default", *(json.dumps(mix) for mix in mixes)]
    judged: list[Judged] = []
    print(f"{'':<42}{'loss':>8}  {'ratio':<16}" + "".join(f"t={t:<8}" for t in TIMES))
    for name, mix in zip(names, [{}, *mixes], strict=True):
        judged.append(judge(Recipe.from_dict(mix), *options, arguments.within, arguments.train))
        losses = judged[-1].unseen
        over = _over(losses.mean(1), judged[0].unseen.mean(1))
        by_time = "".join(f"{v:<10.4f}" for v in losses.mean(0).tolist())
        print(f"{name:<42}  {losses.mean():.4f}  {over}   {by_time}", flush=True)
    if arguments.within:
        for line in said_within(names, judged):
            print(line)
    return 0


if __name__ == "__main__":
    run_command(main)
