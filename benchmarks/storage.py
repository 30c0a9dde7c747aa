"""``python -m benchmarks.storage``: what the service itself costs per trial.

Trials that write all that a real one writes (a recipe of the study "runes", eight reports with
their attributes, a constraint) and compute nothing, on databases that hold finished trials
already.  The baseline is Optuna's own loop on its own storage with the same sampler and pruner.
Two figures for each case, both in ms per trial:

latency   of one trial, from before its claim until after its finish, less its sleep: the median,
          while the trials sleep so long that workers seldom meet, as real ones do
flat out  wall clock per finished trial of all workers together when none of them ever sleeps

Standard errors of latencies are those of the median, by resampling trials; those of the wall
clock are over up to eight batches of successive finishes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import random
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
from tqdm import tqdm

from finetune.errors import run_command
from hpo.study.config import load_study_file

from .arguments import positive
from .figures import Figure, mean_and_error
from .postgres import USER, Postgres
from .storage_case import Case, Measured, measure
from .storage_fill import fill, make_trials
from .storage_services import SERVICES, Phase

STORAGES = ("sqlite", "postgres")
_BATCHES = 8
_RESAMPLES = 400
Row = dict[str, Any]


class SQLite:
    """A directory of database files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(self, database: str) -> str:
        """The URL of a database that is empty."""
        return f"sqlite:///{self._directory / database}.db"

    @contextmanager
    def copy(self, database: str) -> Iterator[str]:
        """The URL of a copy, which is removed at the end."""
        copy = self._directory / "measured.db"
        shutil.copy(self._directory / f"{database}.db", copy)
        os.sync()  # else the first commits would wait for the copy to be written
        yield f"sqlite:///{copy}"
        for path in self._directory.glob("measured.db*"):
            path.unlink()


class PostgreSQL:
    """A server's databases."""

    def __init__(self, server: Postgres) -> None:
        self._server = server

    def create(self, database: str) -> str:
        """The URL of a database that is empty."""
        return self._server.create(database)

    @contextmanager
    def copy(self, database: str) -> Iterator[str]:
        """The URL of a copy, which is removed at the end."""
        self._server.sql(f'CREATE DATABASE measured TEMPLATE "{database}" OWNER {USER}')
        self._server.sql("CHECKPOINT")
        yield self._server.url("measured")
        self._server.sql("DROP DATABASE measured WITH (FORCE)")


def wall_ms(phase: Phase) -> Figure:
    """Wall clock per finished trial, in ms."""
    ends = [phase.started, *(done.at for done in phase.done)]
    n = len(phase.done)
    edges = sorted({round(i * n / _BATCHES) for i in range(_BATCHES + 1)})
    batches = [(ends[b] - ends[a]) / (b - a) for a, b in itertools.pairwise(edges)]
    return 1e3 * (ends[-1] - ends[0]) / n, 1e3 * mean_and_error(batches)[1]


def latency_ms(phase: Phase) -> Figure:
    """The median latency of a trial, in ms."""
    values = [1e3 * done.latency_s for done in phase.done]
    rng = random.Random(0)
    medians = [statistics.median(rng.choices(values, k=len(values))) for _ in range(_RESAMPLES)]
    known = len(values) > 1
    return statistics.median(values), statistics.stdev(medians) if known else math.nan


def make_row(case: Case, measured: Measured) -> Row:
    """A case's figures and the machine's facts; null: too few trials for it."""
    row: Row = {
        "system": case.system,
        "storage": case.storage,
        "stored": case.stored,
        "workers": case.workers,
        "asked_trials": case.trials,
        "think_s": round(measured.think_s, 3),
        "calm_workers": measured.calm_workers,
        "errors": measured.errors,
    }
    for name, phase, figure in (
        ("latency", measured.calm, latency_ms),
        ("flat", measured.flat, wall_ms),
    ):
        value, error = figure(phase) if phase.done else (math.nan, math.nan)
        row[f"{name}_trials"] = len(phase.done)
        row |= {f"{name}_ms": _or_null(value), f"{name}_error_ms": _or_null(error)}
    return row | {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "optuna": optuna.__version__,
    }


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


def figure_of(row: Row | None, name: str) -> Figure | None:
    """A row's ``latency`` or ``flat`` figure, in ms; None if it was not measured."""
    if row is None or row[f"{name}_ms"] is None:
        return None
    error = row[f"{name}_error_ms"]
    return row[f"{name}_ms"], math.nan if error is None else error


def ratio(over: Figure | None, under: Figure | None) -> Figure | None:
    """A ratio of two independent figures."""
    if over is None or under is None:
        return None
    value = over[0] / under[0]
    return value, value * math.hypot(over[1] / over[0], under[1] / under[0])


class Results:
    """Rows by what they are about."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {(r["system"], r["storage"], r["stored"], r["workers"]): r for r in rows}
        self.cases = list(dict.fromkeys(key[1:] for key in self._rows))

    def row(self, system: str, storage: str, stored: int, workers: int) -> Row | None:
        return self._rows.get((system, storage, stored, workers))

    def table(self) -> str:
        """A line for each case: both systems' figures, their ratio and what to know of them."""
        head = f"{'ms per trial':<26}" + "".join(
            f"{f'{name}, ours':>18}{'plain':>18}{'ours/plain':>18}" for name in ("latency", "flat")
        )
        lines = [head]
        for case in self.cases:
            ours, plain = self.row("ours", *case), self.row("plain", *case)
            line = f"{_name(*case):<26}"
            for name in ("latency", "flat"):
                a, b = figure_of(ours, name), figure_of(plain, name)
                line += f"{_show(a, 1):>18}{_show(b, 1):>18}{_show(ratio(a, b), 3):>18}"
            lines.append(line)
            lines += [f"    {note}" for row in (ours, plain) if row for note in _notes(row)]
        return "\n".join(lines)

    def goals(self) -> str:
        """Each goal, the figure that decides it, and whether it is met."""
        against, growth = [], []
        for case in self.cases:
            storage, stored, workers = case
            ours = figure_of(self.row("ours", *case), "latency")
            plain = figure_of(self.row("plain", *case), "latency")
            if storage == "sqlite" and (found := ratio(ours, plain)):
                against.append((found, _name(*case)))
            before = figure_of(self.row("ours", storage, 1000, workers), "latency")
            if stored == 10_000 and (found := ratio(ours, before)):
                growth.append((found, f"{storage}, {workers} workers"))
        most = figure_of(self.row("ours", "postgres", 10_000, 32), "latency")
        busiest = [(most, "the case")] if most else []
        return "\n".join(
            (
                _goal("ours/plain on SQLite, at most 1/3", against, 1 / 3, 3),
                _goal("ours on postgres, 10000 stored, 32 workers, below 100 ms", busiest, 100, 1),
                _goal("ours, 10000 stored over 1000, below 2", growth, 2, 2),
            )
        )


def _goal(what: str, found: Sequence[tuple[Figure, str]], limit: float, digits: int) -> str:
    if not found:
        return f"{what}: not measured"
    met = sum(figure[0] <= limit for figure, _ in found)
    worst, where = max(found)
    verdict = "met" if met == len(found) else f"MISSED in {len(found) - met} of {len(found)} cases"
    return f"{what}: {verdict}; the worst is {_show(worst, digits)} ({where})"


def _name(storage: str, stored: int, workers: int) -> str:
    return f"{storage}, {stored}, {workers} worker{'' if workers == 1 else 's'}"


def _show(figure: Figure | None, digits: int) -> str:
    return "-" if figure is None else f"{figure[0]:.{digits}f} ± {figure[1]:.{digits}f}"


def _notes(row: Row) -> Iterator[str]:
    for name in ("latency", "flat"):
        if row[f"{name}_trials"] < row["asked_trials"]:
            yield f"{row['system']}, {name}: {row[f'{name}_trials']} trials fitted in the time"
    if row["calm_workers"] < row["workers"]:
        yield (
            f"{row['system']}, latency: {row['calm_workers']} workers go on; more would keep the "
            f"machine busy, and the others sleep in the middle of a trial"
        )
    if row["errors"]:
        yield f"{row['system']}: {row['errors']} more trials ended in an error of the database"


def measure_all(arguments: argparse.Namespace) -> list[Row]:
    """Measure every case that was asked for; rows go to the file as they come."""
    trials = make_trials(load_study_file("runes-default"), max(arguments.stored))
    per_database = len(arguments.workers) * len(SERVICES)
    n_cases = len(arguments.storages) * len(arguments.stored) * per_database
    rows = []
    with ExitStack() as stack, tqdm(total=n_cases, desc="cases", unit="case") as progress:
        databases: dict[str, SQLite | PostgreSQL] = {}
        if "sqlite" in arguments.storages:
            directory = tempfile.TemporaryDirectory(prefix="runes-sqlite-")
            databases["sqlite"] = SQLite(Path(stack.enter_context(directory)))
        if "postgres" in arguments.storages:
            databases["postgres"] = PostgreSQL(stack.enter_context(Postgres()))
        for storage, stored in itertools.product(arguments.storages, arguments.stored):
            name = f"stored{stored}"
            fill(databases[storage].create(name), trials[:stored])
            for workers, system in itertools.product(arguments.workers, SERVICES):
                with databases[storage].copy(name) as url:
                    case = Case(
                        system=system,
                        storage=storage,
                        stored=stored,
                        workers=workers,
                        url=url,
                        trials=max(arguments.trials, 2 * workers),
                        seconds=arguments.seconds,
                        think_s=arguments.think,
                    )
                    rows.append(make_row(case, measure(case)))
                if arguments.out:
                    with arguments.out.open("a") as out:
                        out.write(json.dumps(rows[-1]) + "\n")
                progress.update()
    return rows


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--storages", nargs="+", choices=STORAGES, default=STORAGES)
    parser.add_argument("--stored", nargs="+", type=positive, default=[100, 1000, 10_000])
    parser.add_argument("--workers", nargs="+", type=positive, default=[1, 8, 32])
    parser.add_argument(
        "--trials", type=positive, default=64, help="of a case and figure (at least 2 a worker)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of a case and figure; then no trial begins"
    )
    parser.add_argument(
        "--think",
        type=float,
        metavar="SECONDS",
        help="sleep of a trial whose latency is taken (default: 4 times what all workers together "
        "keep the machine busy for, at most --seconds)",
    )
    parser.add_argument("--out", type=Path, help="append a JSON line for each case")
    arguments = parser.parse_args(argv)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        results = Results(measure_all(arguments))
    print(results.table())
    print(results.goals())
    return 0


if __name__ == "__main__":
    run_command(main)
