"""Full tables of real trials, recipe by instance, as a small file; made from a study.

``python -m benchmarks.replay_table --storage sqlite:///replay.db --out FILE.csv.gz`` writes the
recipes of the study ``replay`` (``studies/replay.toml``: random ones, nothing pruned) that were
measured on every instance, from the calls that its database keeps and from its trials.
With ``--add`` a table grows by the trials of a second study, with another seed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState

from finetune.errors import UserError, run_command
from hpo.problem.base import digest_of
from hpo.storage.calls import CallRow
from hpo.storage.open import load_study, open_existing
from hpo.trial.calls import read_row
from hpo.trial.ranking import is_feasible
from hpo.trial.record import Call, read_trial

Array = NDArray[np.float64]

_MEASURED = (TrialState.COMPLETE, TrialState.PRUNED)
DEFAULT_FILE = Path(__file__).parent / "results" / "replay.csv.gz"


@dataclass(frozen=True)
class Table:
    """Recipes (n) by instances (K), each pair measured once.

    ``params`` are the recipes' sampled values, without those that others switch off; ``losses`` and
    ``seconds`` are (n, K), ``curves`` (n, K, parts); ``seconds`` is of the call alone.
    """

    params: list[dict[str, Any]]
    distributions: dict[str, BaseDistribution]
    instances: list[str]
    losses: Array
    seconds: Array
    curves: Array

    def __len__(self) -> int:
        return len(self.params)

    @property
    def quality(self) -> Array:
        """What a recipe is worth: its mean loss over all instances, (n,)."""
        means: Array = self.losses.mean(1)
        return means

    def rows(self, chosen: Sequence[int]) -> Table:
        """The table of these recipes alone, in this order."""
        rows = list(chosen)
        return replace(
            self,
            params=[self.params[i] for i in rows],
            losses=self.losses[rows],
            seconds=self.seconds[rows],
            curves=self.curves[rows],
        )

    def distributions_of(self, row: int) -> dict[str, BaseDistribution]:
        """Of the parameters that a recipe has."""
        return {n: d for n, d in self.distributions.items() if n in self.params[row]}

    def coordinates(self, params: dict[str, Any]) -> Array:
        """Where a recipe lies, with numbers in [0, 1] and one axis a choice, for distances.

        A number that it does not have lies in the middle.
        """
        axes: list[float] = []
        for name, distribution in self.distributions.items():
            value = params.get(name)
            if isinstance(distribution, CategoricalDistribution):
                # Two different choices are at distance 1.
                axes += [float(value == c) / 2**0.5 for c in distribution.choices]
            else:
                assert isinstance(distribution, (FloatDistribution, IntDistribution))
                log = np.log if distribution.log else (lambda v: v)
                low, high = log(distribution.low), log(distribution.high)
                share = 0.5 if value is None else (log(value) - low) / (high - low)
                axes.append(float(share))
        return np.array(axes, dtype=np.float64)


Kept = Mapping[str, Mapping[str, Call]]  # by the recipe's digest and the instance's label


def from_trials(trials: Sequence[FrozenTrial], kept: Kept = MappingProxyType({})) -> Table:
    """The table of the feasible trials whose recipes were measured on every instance.

    Args:
        kept: calls that the study's database keeps; they are read before those of the trials.

    Raises:
        UserError: no trial is complete, or one lacks an instance.
    """
    feasible = [t for t in trials if t.state in _MEASURED and is_feasible(t)]
    first = next((t for t in feasible if t.state == TrialState.COMPLETE), None)
    if first is None:
        raise UserError(
            "no trial is complete; let `python -m hpo.worker --study replay` finish some"
        )
    names = [call.instance for call in read_trial(first).instances]
    whole: list[tuple[FrozenTrial, list[Call]]] = []
    for trial in feasible:
        record = read_trial(trial)
        if trial.state == TrialState.COMPLETE and [c.instance for c in record.instances] != names:
            raise UserError(f"trial {trial.number} has other instances than trial {first.number}")
        made = {call.instance: call for call in record.instances}
        if record.recipe is not None:
            made |= kept.get(digest_of(record.recipe), {})
        if set(names) <= made.keys():
            whole.append((trial, [made[name] for name in names]))

    def column(key: str) -> Array:
        found = [[getattr(call, key) for call in calls] for _, calls in whole]
        return np.array(found, dtype=np.float64)

    return Table(
        params=[trial.params for trial, _ in whole],
        distributions={n: d for trial, _ in whole for n, d in trial.distributions.items()},
        instances=names,
        losses=column("loss"),
        seconds=column("seconds"),
        curves=column("curve"),
    )


def kept_calls(rows: Sequence[CallRow]) -> Kept:
    """The calls of a study's database that gave a loss."""
    found: dict[str, dict[str, Call]] = {}
    for row in rows:
        if isinstance(call := read_row(row), Call):
            found.setdefault(row.recipe, {})[row.instance] = call
    return found


def joined(first: Table, second: Table) -> Table:
    """Both tables' recipes; one that is in both counts once.

    Raises:
        UserError: they differ in their instances or in what varies.
    """
    if first.instances != second.instances or first.distributions != second.distributions:
        raise UserError("the two tables differ in their instances or their search space")
    new = second.rows([i for i, params in enumerate(second.params) if params not in first.params])
    return replace(
        first,
        params=first.params + new.params,
        losses=np.concatenate([first.losses, new.losses]),
        seconds=np.concatenate([first.seconds, new.seconds]),
        curves=np.concatenate([first.curves, new.curves]),
    )


def write_table(table: Table, path: Path) -> None:
    """As compressed CSV, one row a call; the first line is a comment with the distributions."""
    text = io.StringIO()
    spaces = {name: distribution_to_json(d) for name, d in table.distributions.items()}
    text.write(f"# {json.dumps(spaces)}\n")
    names = list(table.distributions)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["recipe", "instance", "loss", "seconds", "curve", *names])
    for i, params in enumerate(table.params):
        for k, instance in enumerate(table.instances):
            curve = " ".join(f"{v:.4g}" for v in table.curves[i, k])
            values = [json.dumps(params[name]) if name in params else "" for name in names]
            writer.writerow(
                [i, instance, repr(float(table.losses[i, k])), table.seconds[i, k], curve, *values]
            )
    # Without a time in it: equal tables are equal files.
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def read_table(path: Path = DEFAULT_FILE) -> Table:
    """Inverse of `write_table`.

    Raises:
        UserError: no such file, or no such table.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        spaces = json.loads(lines[0].removeprefix("# "))
        rows = list(csv.DictReader(lines[1:]))
        distributions = {name: json_to_distribution(d) for name, d in spaces.items()}
        instances = list(dict.fromkeys(row["instance"] for row in rows))
        shape = (len(rows) // len(instances), len(instances))
        return Table(
            params=[
                {name: json.loads(row[name]) for name in distributions if row[name]}
                for row in rows[:: len(instances)]
            ],
            distributions=distributions,
            instances=instances,
            losses=np.array([float(row["loss"]) for row in rows]).reshape(shape),
            seconds=np.array([float(row["seconds"]) for row in rows]).reshape(shape),
            curves=np.array([[float(v) for v in row["curve"].split()] for row in rows]).reshape(
                (*shape, -1)
            ),
        )
    except (OSError, ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"{path} is no table of trials: {error}") from error


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay_table", description=__doc__)
    parser.add_argument("--study", default="replay")
    parser.add_argument("--storage", default="sqlite:///replay.db")
    parser.add_argument("--out", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--add", action="store_true", help="to what the file holds already")
    arguments = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_existing(arguments.storage, arguments.study)
    study = load_study(storage, arguments.study)
    kept = kept_calls(storage.calls_of_study(study._study_id))
    table = from_trials(study.get_trials(deepcopy=False), kept)
    if arguments.add and arguments.out.exists():
        table = joined(read_table(arguments.out), table)
    write_table(table, arguments.out)
    print(f"{arguments.out}: {len(table)} recipes on {len(table.instances)} instances")
    return 0


if __name__ == "__main__":
    run_command(main)
