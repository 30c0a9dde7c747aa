"""``python -m benchmarks.estimators``: network evaluations for a given standard error.

For one adapted network, the variance that one network evaluation leaves, with each way of
estimating its loss on ten drawings.  The baseline is the author's estimator; a ratio of 4
means that it needs four times as many evaluations for the same standard error.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from finetune.adapt import adapt
from finetune.challenge import add_data_options, set_seed
from finetune.data.options import open_asked
from finetune.data.runes import NEW_LABEL, choose_runes
from finetune.errors import run_command
from finetune.model.checkpoints import list_networks, load_network
from finetune.model.groups import with_mean_class
from finetune.recipe import Recipe
from finetune.scoring.estimators import NoiseTable, author_estimate, estimate

TARGET = 5e-4  # standard error at which the evaluations are counted


class AntitheticTable(NoiseTable):
    """Every second replicate has the times of the one before, and its noise negated."""

    def replicate(self, r: int) -> tuple[Tensor, Tensor]:
        t, e = super().replicate(r - r % 2)
        return t, -e if r % 2 else e


def replicate_means(model: nn.Module, x: Tensor, table: NoiseTable) -> Tensor:
    """Means of the table's independent replicates, (r,) float64."""
    return torch.tensor(estimate(model, x, NEW_LABEL, table).replicates, dtype=torch.float64)


def line(name: str, variance: float, baseline: float, n: int) -> str:
    """One row; ``variance`` is that of one evaluation, estimated from ``n`` independent values."""
    ratio = baseline / variance
    # Of a variance from n normal values: sqrt(2 / (n - 1)), relative; the baseline's is smaller.
    error = ratio * math.sqrt(2 / (n - 1))
    needed = variance / TARGET**2
    return f"{name:<44}{variance:>10.2e}{needed:>10.0f}{ratio:>8.1f} ± {error:.1f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators", description=__doc__)
    add_data_options(parser)
    parser.add_argument("--rune", help="default: the first")
    parser.add_argument("--steps", type=int, default=300, help="of the recipe that is evaluated")
    parser.add_argument("--output", choices=("levels", "velocity"), default="levels")
    parser.add_argument("--replicates", type=int, default=32, help="of 25 strata")
    parser.add_argument("--passes", type=int, default=1000, help="of the author's estimator")
    arguments = parser.parse_args(argv)
    source = open_asked(arguments)
    rune = choose_runes(source, [arguments.rune] if arguments.rune else None, 1)[0]
    split = source.split(rune, arguments.resize, arguments.split_seed, arguments.train)
    pretrained = load_network(list_networks(arguments.pretrained)[0])
    recipe = Recipe(steps=arguments.steps, deadline_s=1e4, output=arguments.output)
    model = adapt(pretrained, split.train, recipe).model
    other = adapt(pretrained, split.train, replace(recipe, lr=2e-3)).model
    before = with_mean_class(pretrained)

    x, r = split.test, arguments.replicates
    n = len(x)
    set_seed(0)
    author = author_estimate(model, x, NEW_LABEL, passes=arguments.passes)
    baseline = author.standard_error**2 * author.n_evaluations
    print(f"{rune}, {arguments.resize}: loss {author} by the author's {arguments.passes} passes")
    print(f"{'':<44}{'variance':>10}{'needed':>10}{'ratio':>8}   (for ± {TARGET:g})")
    print(line("author's: t and noise at random", baseline, baseline, arguments.passes))
    for strata, equal in ((1, True), (5, True), (25, True), (25, False)):
        table = NoiseTable(n, strata, r * 25 // strata, seed=1, equal=equal)
        means = replicate_means(model, x, table)
        variance = means.var().item() * n * strata
        kind = "equal strata" if equal else "strata, narrow near t = 0"
        print(line(f"{strata} {kind}", variance, baseline, len(means)))
    halves = replicate_means(model, x, AntitheticTable(n, 25, r, seed=2))
    pairs = halves.view(-1, 2).mean(1)  # only these are independent
    variance = pairs.var().item() * n * 2 * 25
    print(line("25 strata, antithetic noise", variance, baseline, len(pairs)))

    table = NoiseTable(n, 25, r, seed=3)
    ours, theirs = replicate_means(model, x, table), replicate_means(other, x, table)
    control = replicate_means(before, x, table)
    correlation = torch.corrcoef(torch.stack([ours, control]))[0, 1].item()
    residual = ours.var().item() * (1 - correlation**2) * n * 25
    print(line(f"25 strata, pretrained as control (r={correlation:.2f})", residual, baseline, r))
    difference = (ours - theirs).var().item() * n * 25
    print(line("difference of two recipes, one table", difference, 2 * baseline, r))
    apart = replicate_means(other, x, NoiseTable(n, 25, r, seed=4))
    difference = (ours - apart).var().item() * n * 25
    print(line("difference of two recipes, two tables", difference, 2 * baseline, r))
    return 0


if __name__ == "__main__":
    run_command(main)
