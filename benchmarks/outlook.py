"""``python -m benchmarks.outlook``: what `hpo.status` says of the next hour, and what came of it.

Searches of recorded trials (`benchmarks.replay`) are asked again and again how probable it is that
the best loss falls by 1 % within so many calls. Each searches a random part of the table, so that
the best recipe is another one. Printed is how often it happened, by what was said.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from finetune.errors import UserError, run_command
from hpo.pruners.improvement import LEAST_TRIALS, chance_of_fall, since_progress
from hpo.pruners.statistics import Standings

from .replay import Step, keep_quiet, replay
from .replay_strategies import strategies
from .replay_table import DEFAULT_FILE, Table, read_table

_PART = 0.75  # of the table, that one search has
_ASKED = 0.55  # of a search, behind which a small table is nearly used up
_EVERY = 2  # trials
_STRATEGIES = ("TPE, racing 0.4", "random, racing 0.4")
_BOUNDS = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)


@dataclass(frozen=True)
class Answer:
    """What was said at a moment of a search, and whether it came so."""

    said: float
    happened: bool


def answers(table: Table, steps: Sequence[Step], calls: int, share: float) -> Iterator[Answer]:
    """What is said after every other trial of a search, of the next so many calls."""
    quality = table.quality
    losses: list[float] = []
    whole: list[list[float]] = []
    best = float("inf")
    standings: Standings | None = None
    before = 0
    for i, step in enumerate(steps):
        made, before = step.calls - before, step.calls
        row = [float(loss) for loss in table.losses[step.row, :made]]
        if step.complete:
            whole.append(row)
            standings = Standings(np.array(whole))
            best = min(best, float(quality[step.row]))
        assert standings is not None, "the first trial is complete"
        losses.append(standings.full_loss(row))
        if len(losses) < LEAST_TRIALS or i % _EVERY or i > _ASKED * len(steps):
            continue
        later = (
            float(quality[s.row])
            for s in steps[i + 1 :]
            if s.complete and s.calls <= step.calls + calls
        )
        n = calls * len(losses) / step.calls
        said = chance_of_fall(since_progress(losses), n, share, standings.share_of_noise)
        yield Answer(said, min(later, default=best) <= (1 - share) * best)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outlook", description=__doc__)
    parser.add_argument("--table", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--searches", type=int, default=60)
    parser.add_argument("--calls", type=int, nargs="+", default=[15, 40])
    parser.add_argument("--share", type=float, default=0.01, help="of the loss, to fall by")
    arguments = parser.parse_args(argv)
    if arguments.searches < 2:
        raise UserError(f"--searches is {arguments.searches}; write 2 or more")
    keep_quiet()
    table = read_table(arguments.table)
    if arguments.table == DEFAULT_FILE:
        table = table.rows(range(1, len(table)))  # without the default recipe, made by hand
    print_reliability(table, arguments.searches, arguments.calls, arguments.share)
    return 0


def print_reliability(table: Table, searches: int, calls: Sequence[int], share: float) -> None:
    """Print, for each number of calls ahead, how often it happened by what was said."""
    found: dict[int, list[list[Answer]]] = {n: [] for n in calls}  # by search
    for seed in tqdm(range(searches), leave=False):
        rows = np.random.default_rng([seed, 3]).permutation(len(table))
        part = table.rows(rows[: round(_PART * len(table))].tolist())
        name = _STRATEGIES[seed % len(_STRATEGIES)]
        steps = replay(part, strategies([0.4], part)[name], seed)
        for n in calls:
            found[n].append(list(answers(part, steps, n, share)))
    for n, of_searches in found.items():
        all_of_them = [a for search in of_searches for a in search]
        said = float(np.mean([a.said for a in all_of_them]))
        happened = float(np.mean([a.happened for a in all_of_them]))
        print(
            f"falls by {share:.0%} within {n} calls: said {said:.2f}, happened {happened:.2f}, "
            f"{len(all_of_them)} times in {searches} searches"
        )
        for low, high in pairwise(_BOUNDS):
            _print_bin(of_searches, low, high)


def _print_bin(searches: Sequence[Sequence[Answer]], low: float, high: float) -> None:
    """A line, with the error over searches: answers of one search are much alike."""
    parts = [[a for a in search if low <= a.said < high] for search in searches]
    chosen = [a for part in parts for a in part]
    if not chosen:
        return
    happened = float(np.mean([a.happened for a in chosen]))
    off = [sum(a.happened - happened for a in part) for part in parts]
    error = float(np.sqrt(np.sum(np.square(off)))) / len(chosen)
    said = float(np.mean([a.said for a in chosen]))
    print(
        f"  said {low:.2f} to {high:.2f}, {said:.2f} on average: happened {happened:.2f} ± "
        f"{error:.2f}, {len(chosen)} times"
    )


if __name__ == "__main__":
    run_command(main)
