"""``python -m benchmarks.replay_smac``: SMAC3's intensifier on the table of `benchmarks.replay`.

SMAC3 (Lindauer et al., 2022) is no dependency of the project: ``pip install smac`` first. Its
random forest proposes recipes, and its intensifier races them: a challenger meets the incumbent's
instances until it is worse on those that both have. A recipe is complete when it has met all.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from tqdm import tqdm

from finetune.errors import UserError, run_command

from .replay import TARGET_TRIALS, Runs, Step, calls_to, keep_quiet, pick, random_target
from .replay_table import DEFAULT_FILE, Table, read_table


def replay_smac(table: Table, seed: int, min_calls: float, target: float) -> list[Step]:
    """One search of the table by SMAC3; a step is a recipe that was measured on all instances.

    It ends when a recipe is as good as ``target`` and ``min_calls`` are made, or the table is used
    up.
    """
    from smac import HyperparameterOptimizationFacade, Scenario
    from smac.runhistory.dataclasses import TrialValue

    places = np.array([table.coordinates(p) for p in table.params])
    left = list(range(len(table)))
    rows: dict[Any, int] = {}  # by SMAC's configuration
    made: dict[int, int] = {}
    steps: list[Step] = []
    calls = 0
    with tempfile.TemporaryDirectory() as place:
        scenario = Scenario(
            _space(table, seed),
            output_directory=Path(place),
            deterministic=True,
            n_trials=table.losses.size,
            instances=table.instances,
            instance_features={name: [float(i)] for i, name in enumerate(table.instances)},
            seed=seed,
        )
        facade = HyperparameterOptimizationFacade
        race = facade.get_intensifier(scenario, max_config_calls=len(table.instances))
        search = facade(scenario, _never, intensifier=race, logging_level=False, overwrite=True)
        while calls < min_calls or math.isinf(calls_to(steps, table.quality, target)):
            try:
                asked = search.ask()
            except StopIteration:
                break
            if asked.config not in rows:
                if not left:
                    break
                wanted = table.coordinates(dict(asked.config))
                nearest = np.linalg.norm(places[left] - wanted, axis=1).argmin()
                rows[asked.config] = left.pop(int(nearest))
            row = rows[asked.config]
            loss = float(table.losses[row, table.instances.index(asked.instance)])
            search.tell(asked, TrialValue(cost=loss))
            calls += 1
            made[row] = made.get(row, 0) + 1
            if made[row] == len(table.instances):
                steps.append(Step(row, calls, True))
    return steps


def _never(config: object, instance: str, seed: int = 0) -> float:
    raise RuntimeError("losses are told, not computed")


def _space(table: Table, seed: int) -> Any:
    from ConfigSpace import Categorical, ConfigurationSpace, Float, Integer

    space = ConfigurationSpace(seed=seed)
    for name, d in table.distributions.items():
        if isinstance(d, CategoricalDistribution):
            space.add(Categorical(name, list(d.choices)))
        elif isinstance(d, IntDistribution):
            space.add(Integer(name, (d.low, d.high), log=d.log))
        else:
            assert isinstance(d, FloatDistribution)
            space.add(Float(name, (d.low, d.high), log=d.log))
    return space


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay_smac", description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    arguments = parser.parse_args(argv)
    if arguments.seeds < 2:
        raise UserError(f"--seeds is {arguments.seeds}; write 2 or more")
    try:
        import smac  # noqa: F401
    except ImportError as error:
        raise UserError("SMAC3 is not installed; pip install smac") from error
    keep_quiet()
    table = read_table(DEFAULT_FILE)
    table = table.rows(range(1, len(table)))  # without the default recipe, made by hand
    quality = table.quality
    target = random_target(quality, TARGET_TRIALS, arguments.seeds)
    best = set(np.argsort(quality)[:3].tolist())
    budget = TARGET_TRIALS * len(table.instances) / 4
    runs = Runs("SMAC3: random forest, intensifier", [], [])
    for seed in tqdm(range(arguments.seeds), leave=False):
        steps = replay_smac(table, seed, budget, target)
        runs.to_target.append(calls_to(steps, quality, target))
        runs.picks.append(pick(steps, quality, budget) in best)
    print(runs.line(math.nan, math.nan))
    return 0


if __name__ == "__main__":
    run_command(main)
