"""``python -m benchmarks.fidelity``: are recipes ranked alike at a fraction of the speed?

Random recipes of a study's whole space are measured at several speeds of its reference machine.
Printed for each speed are the rank correlations of their mean losses with those at full speed, and
how much worse than the best one is the recipe that looks best there.  Intervals (95 %) are
percentiles of the bootstrap over recipes.

Each call is a line of JSON in ``--out`` as it ends, and is not made again: the same command goes on
where it was.  All calls of a recipe come before the next recipe, so what is there can be used.
Two workers of one thread each make about 1.3 times the calls of one worker of two.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.stats import rankdata
from tqdm import tqdm

from hpo.clock.plan import Clock
from hpo.clock.profile import load_profile
from hpo.errors import UserError, run_command
from hpo.problem.base import Instance, Method, NotFiniteError, Problem, Values, digest_of
from hpo.problem.measure import measure
from hpo.process.devices import n_cores, share_cores
from hpo.study.config import StudyConfig, load_study_file
from hpo.study.space import random_values

from .arguments import positive

FULL = 1.0  # the speed that others are compared with
_RESAMPLES = 2000
_LEAST_RECIPES = 4  # for a correlation
_OUT = Path("benchmarks/results/fidelity.jsonl")


@dataclass(frozen=True)
class Row:
    """A call: a recipe on an instance, at a speed."""

    recipe: int  # number
    instance: str  # label of the instance at full speed
    speed: float
    steps: int
    loss: float | None  # None: not finite
    predicted_s: float  # on the reference machine at full speed
    basis: str  # what else it depends on: digest of the values, code, profile


@dataclass(frozen=True)
class Call:
    """A call to make, and its row but for the loss."""

    values: Values
    instance: Instance
    row: Row

    @property
    def key(self) -> tuple[str, str, float]:
        """What tells it from others."""
        return self.row.basis, self.row.instance, self.row.speed


@dataclass(frozen=True)
class Agreement:
    """How a speed ranks recipes beside full speed, each figure with its 95 % interval."""

    speed: float
    cost: float  # seconds over those at full speed
    spearman: tuple[float, float, float]
    kendall: tuple[float, float, float]
    regret: float  # loss at full speed of the recipe that is best here, over the least one


def read_rows(path: Path) -> list[Row]:
    """The calls in a file; none if there is no file.

    Raises:
        UserError: a line is no call.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(Row(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{number} is no call; remove the line") from error
    return rows


def plan_calls(
    config: StudyConfig,
    method: Method,
    clock: Clock,
    recipes: Sequence[Values],
    instances: Sequence[Mapping[float, Instance]],
) -> list[Call]:
    """Every call, recipe by recipe.

    Args:
        instances: each at all speeds.
    """
    code = method.fingerprint().get("code", "")
    calls = []
    for number, values in enumerate(recipes):
        basis = f"{digest_of(values)} {code} {clock.profile.digest}"
        for at in instances:
            for speed, instance in sorted(at.items()):
                plan = clock.plan(method, values, instance)
                seconds, label = plan.full_speed_s, at[FULL].label
                row = Row(number, label, speed, plan.steps, None, seconds, basis)
                calls.append(Call(values, instance, row))
    return calls


def mean_losses(rows: Sequence[Row], speeds: Sequence[float]) -> dict[float, dict[int, float]]:
    """By speed and recipe the mean loss, of recipes that all instances were measured for.

    A recipe with a loss that is not finite has an infinite mean.
    """
    instances = {row.instance for row in rows}
    found: dict[float, dict[int, list[float]]] = {speed: {} for speed in speeds}
    for row in rows:
        if row.speed in found:
            loss = math.inf if row.loss is None else row.loss
            found[row.speed].setdefault(row.recipe, []).append(loss)
    whole = set.intersection(
        *({r for r, ls in of.items() if len(ls) == len(instances)} for of in found.values())
    )
    return {
        speed: {r: statistics.fmean(ls) for r, ls in sorted(of.items()) if r in whole}
        for speed, of in found.items()
    }


def agreements(rows: Sequence[Row], speeds: Sequence[float]) -> list[Agreement]:
    """Each speed beside full speed, slowest first.

    Raises:
        UserError: there are too few recipes for a correlation.
    """
    losses = mean_losses(rows, speeds)
    full = np.array(list(losses[FULL].values()))
    if len(full) < _LEAST_RECIPES:
        raise UserError(
            f"{len(full)} recipes were measured at all speeds; correlations need {_LEAST_RECIPES}"
        )
    seconds = {s: sum(r.predicted_s for r in rows if r.speed == s) for s in speeds}
    found = []
    for speed in sorted(s for s in speeds if s != FULL):
        here = np.array(list(losses[speed].values()))
        found.append(
            Agreement(
                speed,
                seconds[speed] / seconds[FULL],
                _with_interval(_spearman, here, full),
                _with_interval(_kendall, here, full),
                float(full[here.argmin()] / full.min()),
            )
        )
    return found


def table(found: Sequence[Agreement], n_recipes: int, n_instances: int) -> str:
    """A Markdown table."""
    lines = [
        f"{n_recipes} recipes, {n_instances} instances",
        "",
        "| speed | compute | Spearman | Kendall | loss of its best over the best |",
        "|---|---|---|---|---|",
    ]
    for a in found:
        correlations = [f"{v:.2f} ({lo:.2f} to {hi:.2f})" for v, lo, hi in (a.spearman, a.kendall)]
        cells = [f"{a.speed:g}", f"{a.cost:.0%}", *correlations, f"{a.regret:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


Losses = NDArray[np.float64]


def _with_interval(
    statistic: Callable[[Losses, Losses], Losses], here: Losses, full: Losses
) -> tuple[float, float, float]:
    """A statistic, and its percentiles over resampled recipes."""
    chosen = np.random.default_rng(0).integers(len(full), size=(_RESAMPLES, len(full)))
    # Where all recipes are the same one there is no correlation.
    chosen = chosen[(chosen != chosen[:, :1]).any(1)]
    low, high = np.nanpercentile(statistic(here[chosen], full[chosen]), [2.5, 97.5])
    return float(statistic(here[None], full[None])[0]), float(low), float(high)


def _spearman(one: Losses, other: Losses) -> Losses:
    """Of each pair of rows (m, n): the correlation of their ranks."""
    return _cosines(*(x - x.mean(1, keepdims=True) for x in _ranks(one, other)))


def _kendall(one: Losses, other: Losses) -> Losses:
    """Of each pair of rows (m, n): tau-b, by whether pairs of recipes are in one order."""
    orders = [np.sign(x[:, :, None] - x[:, None]).reshape(len(x), -1) for x in _ranks(one, other)]
    return _cosines(*orders)


def _ranks(*losses: Losses) -> list[Losses]:
    return [rankdata(x, axis=1) for x in losses]


def _cosines(one: Losses, other: Losses) -> Losses:
    lengths: Losses = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    with np.errstate(invalid="ignore"):
        found: Losses = (one * other).sum(1) / lengths
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--study", default="runes", help="whose space and instances (default: runes)")
    add("--machine", default="two-core-bf16", help="profile of the reference machine")
    add("--data", type=Path, help="directory of omniglot-py; also $RUNES_DATA")
    add("--recipes", type=positive, default=24, metavar="N", help="random recipes (default: 24)")
    add("--instances", type=positive, default=4, metavar="N", help="the study's first (default: 4)")
    add("--speeds", type=float, nargs="+", default=[0.1, 0.25, 0.5], help="beside full speed")
    add("--workers", type=positive, default=n_cores(), metavar="N", help="default: one a core")
    add("--seed", type=int, default=0, help="of the recipes")
    add("--out", type=Path, default=_OUT, help=f"file of the calls (default: {_OUT})")
    add("--table", action="store_true", help="print what is there, and measure nothing")
    options = parser.parse_args(argv)
    speeds = sorted({*options.speeds, FULL})
    if speeds[0] <= 0:
        raise UserError(f"--speeds has {speeds[0]:g}; write more than 0")
    rows = read_rows(options.out)
    if not options.table:
        rows = _measured(options, speeds, rows)
    found = agreements(rows, speeds)
    print(table(found, len(mean_losses(rows, speeds)[FULL]), len({r.instance for r in rows})))
    return 0


def _measured(options: argparse.Namespace, speeds: Sequence[float], known: list[Row]) -> list[Row]:
    threads = share_cores(options.workers)
    config, method, problem = opened = _open(options.study, options.data, speeds, threads)
    clock = Clock(load_profile(options.machine), name=options.machine)
    recipes = random_values(config.space, config.fixed, method, options.recipes, options.seed)
    every = problem.instances()  # all of the lowest speed first
    at_speed = [every[k :: len(every) // len(speeds)] for k in range(len(every) // len(speeds))]
    instances = [dict(zip(speeds, same, strict=True)) for same in at_speed[: options.instances]]
    calls = plan_calls(config, method, clock, recipes, instances)
    stored = {(row.basis, row.instance, row.speed): row for row in known}
    rows = [replace(stored[c.key], recipe=c.row.recipe) for c in calls if c.key in stored]
    left = [c for c in calls if c.key not in stored]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with (
        options.out.open("a", encoding="utf-8") as file,
        tqdm(total=len(calls), initial=len(rows), unit="call") as bar,
    ):

        def keep(made: Iterable[Row]) -> None:
            for row in made:
                rows.append(row)
                file.write(json.dumps(vars(row)) + "\n")
                file.flush()
                bar.update()

        if options.workers == 1:
            keep(_make(opened, call) for call in left)
            return rows
        arguments = (options.study, options.data, speeds, threads)
        with get_context("spawn").Pool(options.workers, _start, arguments) as pool:
            keep(pool.imap_unordered(_make_in_pool, left))
    return rows


def _open(
    study: str, data: Path | None, speeds: Sequence[float], threads: int
) -> tuple[StudyConfig, Method, Problem]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config = load_study_file(study)
    asked = config.instances.model_copy(update={"speeds": tuple(speeds)})
    config = config.model_copy(update={"instances": asked})
    method = config.load_method()
    method.prepare(None, threads)
    return config, method, config.load_problem(data)


def _make(opened: tuple[StudyConfig, Method, Problem], call: Call) -> Row:
    _, method, problem = opened
    steps = [call.row.steps]
    try:
        (of,) = measure(
            method, problem, call.values, [call.instance], math.inf, lambda *_: None, steps=steps
        )
    except NotFiniteError:
        return call.row
    return replace(call.row, loss=of.evaluation.loss)


_opened: tuple[StudyConfig, Method, Problem] | None = None  # in a process of the pool


def _start(*arguments: Any) -> None:
    global _opened
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started the pool ends it
    _opened = _open(*arguments)


def _make_in_pool(call: Call) -> Row:
    assert _opened is not None
    return _make(_opened, call)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the pool as Ctrl-C does
    run_command(main)
