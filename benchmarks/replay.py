"""``python -m benchmarks.replay``: samplers, pruners and orders of instances on recorded trials.

Each strategy searches a table of real trials (`benchmarks.replay_table`) as if it ran them: a
proposed recipe becomes the nearest one that it has not tried, a call's loss is looked up.  What a
strategy costs is counted in calls.  The baseline is random search that measures every trial in
full; beside it stands Optuna's default, TPE with its MedianPruner.
"""

from __future__ import annotations

import argparse
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from scipy.stats import spearmanr
from tqdm import tqdm

from finetune.errors import UserError, run_command
from hpo.analysis.importance import importances
from hpo.pruners.racing import Race

from .replay_strategies import BASELINE, DEFAULT, Running, Strategy, strategies
from .replay_table import DEFAULT_FILE, Array, Table, read_table

TARGET_TRIALS = 100  # of random search, whose best loss is the target
_N_GOOD = 15  # recipes, in how much instances disagree about them
_N_FEW = 30  # random ones, whose best the first recipe should beat
N_PICKS = 3  # a pick among this many best recipes is a good one


@dataclass(frozen=True)
class Step:
    """One trial of a replay: the recipe's row, and all calls made up to its end."""

    row: int
    calls: int
    complete: bool


def replay(
    table: Table,
    strategy: Strategy,
    seed: int,
    min_calls: float = math.inf,
    target: float = -math.inf,
) -> list[Step]:
    """One search of the table, until it is used up.

    It ends earlier when a complete trial is as good as ``target`` and ``min_calls`` are made.
    """
    study = optuna.create_study(sampler=strategy.sampler(seed), pruner=strategy.pruner())
    race = Race()
    left = list(range(len(table)))
    places = np.array([table.coordinates(p) for p in table.params])
    n_instances = len(table.instances)
    steps: list[Step] = []
    calls = 0
    quality = table.quality
    while left and (calls < min_calls or math.isinf(calls_to(steps, quality, target))):
        asked = study.ask(table.distributions)
        # Failed trials teach samplers nothing: what is proposed and what is run may differ.
        study.tell(asked, state=TrialState.FAIL)
        distances = np.linalg.norm(places[left] - table.coordinates(asked.params), axis=1)
        row = left.pop(int(distances.argmin()))
        reports: dict[int, float] = {}
        dropped = False
        running = Running(study, table, row) if strategy.by_optuna else None
        for k in range(n_instances):
            calls += 1
            losses = table.losses[row, : k + 1]
            reports[k + 1] = float(losses.mean() if strategy.means else losses[-1])
            trial = create_trial(state=TrialState.RUNNING, intermediate_values=reports)
            if running is not None:
                dropped = running.is_pruned(k + 1, reports[k + 1])
            else:
                dropped = k + 1 < n_instances and study.pruner.prune(study, trial)
            if dropped and k + 1 < n_instances:
                break
        dropped = dropped and len(reports) < n_instances
        value = float(table.losses[row, : len(reports)].mean())
        steps.append(Step(row, calls, not dropped))
        if running is not None:
            # Hyperband's trials are told as pruned, the WilcoxonPruner's with their mean so far.
            running.tell(value, dropped and strategy.means)
            continue
        standings = race.standings(study)
        if dropped and strategy.estimates and standings is not None:
            value = standings.full_loss(table.losses[row, : len(reports)].tolist())
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if dropped else TrialState.COMPLETE,
                value=value,
                params=table.params[row],
                distributions=table.distributions_of(row),
                intermediate_values=reports,
            )
        )
    return steps


def calls_to(steps: Sequence[Step], quality: Array, target: float) -> float:
    """Calls until a complete trial is as good as ``target``; infinite if none ever is."""
    good = (s.calls for s in steps if s.complete and quality[s.row] <= target)
    return float(next(good, math.inf))


def pick(steps: Sequence[Step], quality: Array, max_calls: float) -> int | None:
    """The row of the best trial that was complete within so many calls."""
    rows = [s.row for s in steps if s.complete and s.calls <= max_calls]
    return min(rows, key=lambda row: quality[row], default=None)


def random_target(quality: Array, n_trials: int, seeds: int) -> float:
    """The median, over seeds, of the best of so many rows drawn without replacement."""
    n = min(n_trials, len(quality))
    rng = np.random.default_rng(0)
    return float(
        np.median([rng.choice(quality, n, replace=False).min() for _ in range(200 * seeds)])
    )


def in_order(table: Table, order: Sequence[int]) -> Table:
    """The table with its instances in another order."""
    o = list(order)
    return replace(
        table,
        instances=[table.instances[k] for k in o],
        losses=table.losses[:, o],
        seconds=table.seconds[:, o],
        curves=table.curves[:, o],
    )


def suggest_order(losses: Array) -> list[int]:
    """Instances in the order in which the first ones rank the better recipes best.

    Greedy: each next instance is the one with which the mean of log losses so far correlates
    best with that of all instances, over the better half of the rows of ``losses`` (n, K).
    """
    logs = np.log(losses)
    total = logs.mean(1)
    good = logs[total <= np.median(total)]
    total = good.mean(1)
    order: list[int] = []
    while len(order) < losses.shape[1]:
        rest = [k for k in range(losses.shape[1]) if k not in order]
        order.append(max(rest, key=lambda k: _correlation(good[:, [*order, k]].mean(1), total)))
    return order


def prefix_correlations(losses: Array, order: Sequence[int]) -> list[float]:
    """How well the mean over the first 1, 2, ... instances correlates with the whole mean."""
    logs = np.log(losses)
    total = logs.mean(1)
    good = total <= np.median(total)
    return [
        _correlation(logs[good][:, list(order[: k + 1])].mean(1), total[good])
        for k in range(len(order))
    ]


def _correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def report_orders(table: Table) -> None:
    """Print the suggested order, judged on the recipes that did not suggest it."""
    n = len(table)
    given = list(range(len(table.instances)))
    halves = [np.arange(n) % 2 == 0, np.arange(n) % 2 == 1]
    print("correlation of the first instances' mean with that of all, better half of recipes:")
    before = np.mean([prefix_correlations(table.losses[h], given) for h in halves], axis=0)
    after = np.mean(
        [
            prefix_correlations(table.losses[h], suggest_order(table.losses[other]))
            for h, other in (halves, halves[::-1])
        ],
        axis=0,
    )
    for name, values in (("as given", before), ("suggested by the other half", after)):
        print(f"  {name:<28}" + " ".join(f"{v:.3f}" for v in values))
    names = [table.instances[k] for k in suggest_order(table.losses)]
    print(f"  suggested by all: {', '.join(names)}\n")


def report_curves(table: Table) -> None:
    """Print what training losses inside a call say about its end."""
    n, k, parts = table.curves.shape
    asked = [parts // 4 - 1, parts // 2 - 1, 3 * parts // 4 - 1, parts - 1]
    good = table.quality <= np.median(table.quality)
    print("rank correlation of training loss with the loss on unseen drawings, recipes of one")
    print("instance, mean over instances:")
    for name, rows in (("all recipes", np.full(n, True)), ("better half", good)):
        values = [
            np.mean(
                [
                    spearmanr(table.curves[rows, i, part], table.losses[rows, i]).statistic
                    for i in range(k)
                ]
            )
            for part in asked
        ]
        shown = ", ".join(
            f"{v:.2f} at {(part + 1) / parts:.0%}" for part, v in zip(asked, values, strict=True)
        )
        print(f"  {name:<12} {shown}")
    print()


def report_recipes(table: Table) -> None:
    """Print the first recipe against the best other ones, and which parameters matter."""
    logs = np.log(table.losses)
    better = int((table.quality[1:] < table.quality[0]).sum())
    print(f"the first recipe: {table.quality[0]:.4f}, and {better} of the others are better")
    for who, n in (("other", len(table)), (f"of the next {_N_FEW}", 1 + _N_FEW)):
        best = 1 + int(table.quality[1:n].argmin())
        differences = logs[0] - logs[best]
        error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
        ratio = f"{math.exp(differences.mean()):.3f} ± {error:.3f}"
        print(f"the best {who}: {table.quality[best]:.4f}; the first one's ratio to it is {ratio}")
    good = np.argsort(table.quality)[:_N_GOOD]
    pairs = [logs[i] - logs[j] for n, i in enumerate(good) for j in good[:n]]
    spread = float(np.mean([pair.std(ddof=1) for pair in pairs]))
    print(f"deviation over instances of the ratio of two of the best {_N_GOOD}: {spread:.1%}")
    for name, distribution in table.distributions.items():
        if isinstance(distribution, CategoricalDistribution):
            for choice in distribution.choices:
                losses = table.quality[1:][[p.get(name) == choice for p in table.params[1:]]]
                if len(losses):
                    found = f"median {np.median(losses):.4f}, best {losses.min():.4f}"
                    print(f"  {name} = {choice}: {len(losses)} recipes, {found}")
    print("importance for being among the best tenth, with its error:")
    study = optuna.create_study()  # gives trials their numbers, by which Optuna knows them
    study.add_trials(
        create_trial(
            value=float(table.quality[i]),
            params=table.params[i],
            distributions=table.distributions_of(i),
        )
        for i in range(1, len(table))
    )
    for one in importances(study.trials):
        print(f"  {one.name:<22}{one.share:>5.0%} ± {one.standard_error:.0%}")
    print()


@dataclass
class Runs:
    """All replays of one strategy."""

    name: str
    to_target: list[float]
    picks: list[bool]  # whether the pick within the budget is among the best
    met: int = 0  # how often the table's best recipe was tried
    dropped: int = 0  # and pruned

    def line(self, baseline: float, default: float) -> str:
        """One row of the table."""
        median = float(np.median(self.to_target))
        low, high = median_interval(self.to_target)
        share = float(np.mean(self.picks))
        error = math.sqrt(share * (1 - share) / len(self.picks))
        lost = f"{self.dropped}/{self.met}"
        interval = f"[{low:.0f}, {high:.0f}]"
        return (
            f"{self.name:<52}{median:>7.0f} {interval:<14}{median / baseline:>7.2f}"
            f"{median / default:>8.2f}{share:>8.0%} ± {error:<5.0%}{lost:>8}"
        )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """About 95 %, by the binomial distribution of order statistics."""
    ordered = sorted(values)
    n = len(ordered)
    reach = math.ceil(0.98 * math.sqrt(n))
    return ordered[max(0, n // 2 - reach)], ordered[min(n - 1, n // 2 + reach)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument("--table", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.1, 0.2, 0.4, 0.6, 0.8])
    parser.add_argument("--only", nargs="+", metavar="WORD", help="strategies with such a word")
    parser.add_argument("--order", choices=("given", "suggested"), default="given")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="(default: cores)")
    parser.add_argument(
        "--with-first", action="store_true", help="keep the first recipe, the default one"
    )
    arguments = parser.parse_args(argv)
    for option, least in (("seeds", 2), ("processes", 1)):
        value = getattr(arguments, option)
        if value < least:
            raise UserError(f"--{option} is {value}; write {least} or more")
    keep_quiet()
    table = read_table(arguments.table)
    report_recipes(table)
    report_orders(table)
    report_curves(table)
    if arguments.order == "suggested":
        table = in_order(table, suggest_order(table.losses))
    if not arguments.with_first:
        # It was chosen by hand and is hard to beat.
        table = table.rows(range(1, len(table)))
    words = arguments.only or [""]
    print_races(table, arguments.alpha, arguments.seeds, words, arguments.processes)
    return 0


def _replays(
    table: Table,
    alphas: Sequence[float],
    names: Sequence[str],
    seeds: int,
    processes: int,
    budget: float,
    target: float,
) -> Iterator[list[Step]]:
    """All seeds of the first name, then of the next, and so on."""
    work = [(name, seed) for name in names for seed in range(seeds)]
    one = partial(_replay_named, table, tuple(alphas), budget, target)
    if processes == 1:
        yield from map(one, work)
        return
    # Started anew: a fork would take over locks of torch's and numpy's threads.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(one, work)


def _replay_named(
    table: Table, alphas: Sequence[float], budget: float, target: float, work: tuple[str, int]
) -> list[Step]:
    """In a process of its own: strategies can't be sent there, but their names can."""
    keep_quiet()
    name, seed = work
    return replay(table, strategies(alphas, table)[name], seed, budget, target)


def keep_quiet() -> None:
    """No lines of Optuna's."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def print_races(
    table: Table, alphas: Sequence[float], seeds: int, words: Sequence[str], processes: int = 1
) -> list[Runs]:
    """Replay all strategies whose names hold one of the words, and the two baselines."""
    quality = table.quality
    target = random_target(quality, TARGET_TRIALS, seeds)
    best = set(np.argsort(quality)[:N_PICKS].tolist())
    whole = TARGET_TRIALS * len(table.instances)
    budget = whole / 4
    names = [
        n
        for n in strategies(alphas, table)
        if n in (BASELINE, DEFAULT) or any(w in n for w in words)
    ]
    replays = iter(
        tqdm(
            _replays(table, alphas, names, seeds, processes, budget, target),
            total=len(names) * seeds,
            unit="replay",
            leave=False,
        )
    )
    found = []
    for name in names:
        runs = Runs(name, [], [])
        for steps in islice(replays, seeds):
            runs.to_target.append(calls_to(steps, quality, target))
            runs.picks.append(pick(steps, quality, budget) in best)
            winner = [s for s in steps if s.row == int(quality.argmin())]
            runs.met += len(winner)
            runs.dropped += sum(not s.complete for s in winner)
        found.append(runs)
    baseline, default = (
        float(np.median(found[names.index(n)].to_target)) for n in (BASELINE, DEFAULT)
    )
    print(
        f"{len(table)} recipes on {len(table.instances)} instances; {seeds} seeds; target "
        f"{target:.4f}, the median best of {TARGET_TRIALS} random recipes"
    )
    print(
        f"{'':<52}{'calls to it':<22}{'/random':>7}{'/Optuna':>8}"
        f"{f'best {N_PICKS} in {budget:.0f}':>16}{'dropped':>8}"
    )
    for runs in found:
        print(runs.line(baseline, default))
    return found


if __name__ == "__main__":
    run_command(main)
