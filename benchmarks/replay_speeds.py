"""``python -m benchmarks.replay_speeds``: how to spend compute on two speeds, on recorded trials.

Each strategy searches a table of trials as `benchmarks.replay` does, with TPE and the race. Calls
at the lower speed come first and cost a share of one at the target speed. A table of a study with
speeds has both (``python -m benchmarks.replay_table --study NAME``). For one at a single speed
the looks are simulated: ``--correlation`` is that of recipes' mean log losses at both speeds,
over the better half of them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial
from tqdm import tqdm

from finetune.errors import UserError, run_command
from hpo.pruners.looks import LookStandings
from hpo.pruners.promotion import Promotion, Spent
from hpo.pruners.racing import RacingPruner
from hpo.samplers.registry import Sampler, make_sampler

from .replay import keep_quiet, median_interval
from .replay_table import DEFAULT_FILE, Array, Table, read_table

ALPHA = 0.4
_SHARED = 0.36  # of the variance of a loss around recipe and rune, that both simulated speeds share
_BIAS = 0.13  # log loss by which simulated looks are higher


@dataclass(frozen=True)
class Ladder:
    """The fixed way: look at so many recipes, then measure the best few of them."""

    looks: int
    best: int = 8


Policy = Promotion | Ladder | None  # None: every recipe that is not dropped in its looks goes on


def policies(n_looks: int, n_instances: int, cost: float) -> dict[str, Policy]:
    """By name; ours are those of a `Promotion`."""

    def promotion(share: float) -> Promotion:
        return Promotion(RacingPruner(ALPHA), n_looks, n_instances, cost, share)

    return {
        "promoted, half of the compute": promotion(0.5),
        "promoted, a third": promotion(1 / 3),
        "all that are left go on": None,
        "ladder: 40 looked at, the best 8 go on": Ladder(40),
        "ladder: 80 looked at, the best 8 go on": Ladder(80),
    }


def with_looks(table: Table, correlation: float, seed: int) -> tuple[Array, int]:
    """Losses (n, L + K) of a table at one speed, with simulated looks before them; and L = K."""
    logs = np.log(table.losses)
    rng = np.random.default_rng([seed, 7])
    means, difficulty = logs.mean(1, keepdims=True), logs.mean(0)
    rest = logs - means - difficulty + logs.mean()
    good = means[means <= np.median(means)]
    deviation = float(good.std()) * math.sqrt(1 / correlation**2 - 1)
    own = rest.std() * rng.standard_normal(logs.shape)
    noise = math.sqrt(_SHARED) * rest + math.sqrt(1 - _SHARED) * own
    noise -= noise.mean(1, keepdims=True)
    looks = _BIAS + means + deviation * rng.standard_normal(means.shape)
    looked = np.exp(looks + difficulty - logs.mean() + noise)
    return np.concatenate([looked, table.losses], axis=1), logs.shape[1]


def of_speeds(table: Table) -> int:
    """How many of a table's instances, the first ones, are at a lower speed than the last.

    Raises:
        UserError: none are, or the target's do not come last.
    """
    speeds = [float(label.partition("*")[2] or 1) for label in table.instances]
    n_looks = sum(speed < speeds[-1] for speed in speeds)
    if not n_looks or any(speed != speeds[-1] for speed in speeds[n_looks:]):
        raise UserError("the table has no looks at a lower speed; simulate them: --correlation 0.8")
    return n_looks


@dataclass
class Search:
    """One search of a table.

    Args:
        losses: (n, L + T).
        cost: of a look, over a call at the target speed.
    """

    table: Table
    losses: Array
    n_looks: int
    cost: float
    policy: Policy
    seed: int
    spent: float = 0.0  # in calls at the target speed
    complete: list[tuple[float, int]] = field(default_factory=list)  # when, and which row
    _made: dict[int, int] = field(default_factory=dict)  # calls by row, in the order of the looks
    _dropped: set[int] = field(default_factory=set)
    _standings: LookStandings | None = None

    def run(self, budget: float) -> None:
        """Until so much is spent, or nothing is left to do."""
        sampler = make_sampler(Sampler(name="tpe"), self.seed)
        places = np.array([self.table.coordinates(p) for p in self.table.params])
        left = list(range(len(self.table)))
        while self.spent < budget:
            if (row := self._promoted()) is not None:
                self._measure(row, self.losses.shape[1])
                continue
            if not left or (isinstance(self.policy, Ladder) and self._is_over()):
                return
            proposed = self._study(sampler).ask(self.table.distributions).params
            distances = np.linalg.norm(places[left] - self.table.coordinates(proposed), axis=1)
            self._measure(left.pop(int(distances.argmin())), self.n_looks)

    def _is_over(self) -> bool:
        assert isinstance(self.policy, Ladder)
        return len(self._made) >= self.policy.looks

    def _promoted(self) -> int | None:
        standings = self._standings
        waiting = {
            row: self._row(row)
            for row, n in self._made.items()
            if n == self.n_looks and row not in self._dropped
        }
        if standings is None or not waiting:
            return None
        best = min(waiting, key=lambda row: standings.predicted(waiting[row]))
        on = sum(n > self.n_looks for n in self._made.values())
        if isinstance(self.policy, Ladder):
            return best if self._is_over() and on < self.policy.best else None
        if self.policy is None:
            return best
        looks = sum(min(n, self.n_looks) for n in self._made.values())
        target = sum(max(n - self.n_looks, 0) for n in self._made.values())
        return self.policy.chosen(standings, waiting, Spent(self.cost * looks, target))

    def _row(self, row: int) -> list[float]:
        return [float(loss) for loss in self.losses[row, : self._made[row]]]

    def _measure(self, row: int, until: int) -> None:
        """Make a recipe's calls up to one, unless the race drops it."""
        n_instances = self.losses.shape[1]
        while self._made.get(row, 0) < until:
            n = self._made[row] = self._made.get(row, 0) + 1
            self.spent += self.cost if n <= self.n_looks else 1.0
            if self._standings is None or n == n_instances:
                continue
            if self._standings.judge(self._row(row), ALPHA).drop:
                self._dropped.add(row)
                break
        if self._made[row] == n_instances:
            self.complete.append((self.spent, row))
        rows = [self._row(row) for row in self._made]
        whole = [r for r in rows if len(r) == n_instances]
        partial = [r for r in rows if len(r) < n_instances]
        if whole or any(len(r) >= self.n_looks for r in partial):
            self._standings = LookStandings(whole, partial, self.n_looks)

    def _study(self, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        """A study in which each recipe has the loss at the target that is predicted of it now."""
        study = optuna.create_study(sampler=sampler)
        for row in self._made:
            losses = self._row(row)
            known = self._standings
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    value=float(np.mean(losses)) if known is None else known.full_loss(losses),
                    params=self.table.params[row],
                    distributions=self.table.distributions_of(row),
                )
            )
        return study


def best_at(search: Search, quality: Array, spent: float) -> float:
    """The least true loss of a recipe that was complete by then, over the table's least."""
    found = [quality[row] for at, row in search.complete if at <= spent]
    return float(min(found, default=math.nan) / quality.min())


def cost_to(search: Search, quality: Array, target: float) -> float:
    """What was spent when a recipe as good as that was complete."""
    return next((at for at, row in search.complete if quality[row] <= target), math.inf)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay_speeds", description=__doc__)
    parser.add_argument("--table", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--correlation", type=float, help="simulate looks; in (0, 1)")
    parser.add_argument("--cost", type=float, default=0.12, help="of a look (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="policies with such a word")
    arguments = parser.parse_args(argv)
    if arguments.correlation is not None and not 0 < arguments.correlation < 1:
        raise UserError(f"--correlation is {arguments.correlation}; write a number in (0, 1)")
    if arguments.seeds < 2:
        raise UserError(f"--seeds is {arguments.seeds}; write 2 or more")
    keep_quiet()
    table = read_table(arguments.table)
    if arguments.table == DEFAULT_FILE:
        table = table.rows(range(1, len(table)))  # without the default recipe, made by hand
    print_policies(table, arguments.correlation, arguments.cost, arguments.seeds, arguments.only)
    return 0


def print_policies(
    table: Table,
    correlation: float | None,
    cost: float,
    seeds: int,
    words: Sequence[str] | None = None,
) -> Mapping[str, Sequence[Search]]:
    """Replay all policies whose names hold one of the words."""
    n_looks = len(table.instances) if correlation is not None else of_speeds(table)
    n_target = n_looks if correlation is not None else len(table.instances) - n_looks
    quality = table.losses[:, -n_target:].mean(1)
    near, budgets = 1.02 * float(quality.min()), (60.0, 120.0)
    chosen = policies(n_looks, n_looks + n_target, cost)
    names = [n for n in chosen if not words or any(word in n for word in words)]
    found: dict[str, list[Search]] = {name: [] for name in names}
    print(
        f"{len(table)} recipes; a look costs {cost:g} calls; calls until a complete recipe is "
        f"within 2 % of the best; the best complete one, over the table's best; {seeds} seeds"
    )
    for name in tqdm(names, leave=False):
        for seed in range(seeds):
            losses = table.losses
            if correlation is not None:
                losses, _ = with_looks(table, correlation, seed)
            search = Search(table, losses, n_looks, cost, chosen[name], seed)
            search.run(_LARGEST * n_target)
            found[name].append(search)
        print(_line(name, found[name], quality, near, budgets), flush=True)
    return found


_LARGEST = 50.0  # recipes in full, after which a search ends


def _line(
    name: str, searches: Sequence[Search], quality: Array, near: float, budgets: Sequence[float]
) -> str:
    costs = [cost_to(search, quality, near) for search in searches]
    low, high = median_interval(costs)
    parts = [f"{name:<40}{np.median(costs):>6.0f} [{low:.0f}, {high:.0f}]"]
    for spent in budgets:
        ratios = np.array([best_at(search, quality, spent) for search in searches])
        known = ratios[np.isfinite(ratios)]
        error = known.std(ddof=1) / math.sqrt(len(known)) if len(known) > 1 else math.nan
        mean = known.mean() if len(known) else math.nan
        parts.append(f"after {spent:g}: {mean:.4f} ± {error:.4f}")
    return "   ".join(parts)


if __name__ == "__main__":
    run_command(main)
