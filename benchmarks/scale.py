"""``python -m benchmarks.scale``: hundreds of workers on tens of thousands of trials, played.

A real PostgreSQL on this machine, the service's own loop, storage and signs of life, and workers
that sleep where real ones compute: threads of a few processes (`benchmarks/scale_player.py` says
what is less than real).  Calls take as long as those that were recorded in
``benchmarks/results/replay.csv.gz``, stretched to a mean of ``--call-s``; ``--compress`` makes
time run so many times quicker, heartbeats and all.  All but the trials that are played are stored
beforehand.

Each case is a number of workers; for one alone, whom nobody makes wait, time runs a hundred times
quicker still, so that something is seen.  Counted between two moments, when all workers are in
their trials: transactions, rows, the log, CPU seconds of the server and of the players, each
operation's time as a worker sees it, and every half second who waits for a lock.  At the end
nothing may be lost: each trial was finished once, and those at hand wait again (or, where the
database had no time for that, are still held and would count as lost).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import TrialState
from tqdm import tqdm

from finetune.errors import UserError, run_command
from hpo.storage.tables import TRIALS, USER_ATTRS
from hpo.storage.url import parse_url
from hpo.study.config import Recovery

from .postgres import USER, Postgres
from .replay_table import read_table
from .scale_fill import fill_many
from .scale_player import Orders, Played, play
from .scale_server import Counters, Looks, Observer
from .scale_table import make_row, to_text
from .storage_fill import REPORTS

_STORED = "stored"
_PER_PROCESS = 125  # workers
_JOIN_S = 300.0
_ALONE_COMPRESS = 100.0
Row = dict[str, Any]


class Crew:
    """Processes that play workers, until the block ends."""

    def __init__(self, url: str, workers: int, call_s: float, compress: float) -> None:
        context = multiprocessing.get_context("spawn")
        calls_s = recorded_calls(call_s)
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        for first in range(0, workers, _PER_PROCESS):
            ours, theirs = context.Pipe()
            orders = Orders(
                url=url,
                workers=min(_PER_PROCESS, workers - first),
                first=first,
                calls_s=calls_s,
                compress=compress,
                heartbeat_s=Recovery().heartbeat_s,
                grace_s=Recovery().grace_s,
            )
            process = context.Process(target=play, args=(orders, theirs), daemon=True)
            process.start()
            theirs.close()  # so that its end is noticed here
            self._pipes.append(ours)
            self._processes.append(process)

    def ready(self) -> None:
        """Wait until every worker has begun."""
        for pipe in self._pipes:
            pipe.recv()

    def ask(self, word: str) -> Played:
        """What all processes have seen since they were asked last; ``stop`` ends them."""
        for pipe in self._pipes:
            pipe.send(word)
        return merged([pipe.recv() for pipe in self._pipes])

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for process in self._processes:
            if kind is None:
                process.join(_JOIN_S)
            process.kill()


def merged(parts: Sequence[Played]) -> Played:
    """What several processes have seen, as if it were one."""
    whole = Played()
    for part in parts:
        for operation, seconds in part.took_s.items():
            whole.took_s[operation] += seconds
        whole.finished += part.finished
        whole.errors += part.errors
        whole.cpu_s += part.cpu_s
        whole.trials_read += part.trials_read
    return whole


def recorded_calls(mean_s: float) -> list[list[float]]:
    """Seconds of each call of recorded trials, stretched to this mean."""
    seconds = read_table().seconds
    return [[float(s) for s in row] for row in seconds * (mean_s / seconds.mean())]


def measure(server: Postgres, workers: int, arguments: argparse.Namespace) -> Row:
    """Play one case on a copy of the stored study.

    Raises:
        RuntimeError: a trial was lost, or finished twice.
    """
    compress = arguments.compress * (_ALONE_COMPRESS if workers == 1 else 1.0)
    server.sql(f'CREATE DATABASE played TEMPLATE "{_STORED}" OWNER {USER}')
    server.sql("CHECKPOINT")
    url = server.url("played")
    try:
        with Observer(server, parse_url(url)) as observer:
            with Crew(url, workers, arguments.call_s, compress) as crew:
                crew.ready()
                started = crew.ask("turn")
                observer.turn()
                before, began = observer.counters(), time.monotonic()
                _wait(arguments.seconds, f"{workers} workers")
                after, seconds = observer.counters(), time.monotonic() - began
                looks, played = observer.turn(), crew.ask("turn")
                load = os.getloadavg()[0]
                rest = crew.ask("stop")
            finished = started.finished + played.finished + rest.finished
            held, failures = _check(url, arguments.stored, finished)
        row = _row(workers, seconds, arguments, played, (before, after), looks)
        return row | {
            "compress": compress,
            "finished_in_all": finished,
            "not_handed_back": held,
            "failures": failures,
            "errors_at_the_end": dict(rest.errors),
            "load_average": round(load, 1),
        }
    finally:
        server.sql("DROP DATABASE played WITH (FORCE)")


def _wait(seconds: float, what: str) -> None:
    with tqdm(total=round(seconds), desc=what, unit="s") as bar:
        for _ in range(round(seconds)):
            time.sleep(1)
            bar.update()
        time.sleep(max(0.0, seconds - round(seconds)))


def _check(url: str, stored: int, finished: int) -> tuple[int, list[str]]:
    """How many trials are still held, and why trials failed.

    Raises:
        RuntimeError: a trial was finished twice or is gone.
    """
    engine = sa.create_engine(parse_url(url))
    with engine.connect() as c:
        numbers = c.execute(
            sa.select(sa.func.count(), sa.func.count(sa.distinct(TRIALS.c.number)))
        ).one()
        rows = c.execute(sa.select(TRIALS.c.state, sa.func.count()).group_by(TRIALS.c.state))
        states: dict[TrialState, int] = {state: int(n) for state, n in rows}
        why = (
            sa.select(USER_ATTRS.c.value_json)
            .join(TRIALS, TRIALS.c.trial_id == USER_ATTRS.c.trial_id)
            .where(TRIALS.c.state == TrialState.FAIL, USER_ATTRS.c.key == "reason")
        )
        failures = [str(json.loads(text))[:300] for text in c.execute(why).scalars()]
    engine.dispose()
    ended = sum(n for state, n in states.items() if state.is_finished())
    if numbers[0] != numbers[1] or ended != stored + finished:
        raise RuntimeError(f"{stored} stored and {finished} finished trials became {states}")
    return states.get(TrialState.RUNNING, 0), failures


def _row(
    workers: int,
    seconds: float,
    arguments: argparse.Namespace,
    played: Played,
    counters: tuple[Counters, Counters],
    looks: Looks,
) -> Row:
    case = {
        "workers": workers,
        "stored": arguments.stored,
        "seconds": round(seconds, 1),
        "call_s": arguments.call_s,
        "compress": arguments.compress,
        "heartbeat_s": Recovery().heartbeat_s,
        "trial_rate_per_worker": 1.0 / (REPORTS * arguments.call_s),  # in a second, not compressed
        "label": arguments.label,
    }
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "optuna": optuna.__version__,
        "nice": os.nice(0),
    }
    return {**case, **make_row(played, *counters, looks, seconds), **machine}


def measure_all(arguments: argparse.Namespace) -> list[Row]:
    """Measure every case; rows go to the file as they come."""
    rows: list[Row] = []
    # A worker has two connections: its trial's, and its signs of life.
    with Postgres(connections=3 * max(arguments.workers) + 20) as server:
        fill_many(server.create(_STORED), arguments.stored)
        for workers in arguments.workers:
            rows.append(measure(server, workers, arguments))
            if arguments.out:
                with arguments.out.open("a") as out:
                    out.write(json.dumps(rows[-1]) + "\n")
    return rows


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 50, 200, 500])
    parser.add_argument("--stored", type=int, default=50_000, help="trials, before any is played")
    parser.add_argument("--seconds", type=float, default=120.0, help="of a case, once all play")
    parser.add_argument(
        "--call-s", type=float, default=110.0, help="mean of a call (default: 110 s)"
    )
    parser.add_argument("--compress", type=float, default=1.0, help="time runs so much quicker")
    parser.add_argument("--label", default="", help="written into the rows")
    parser.add_argument("--out", type=Path, help="append a JSON line for each case")
    parser.add_argument("--show", type=Path, help="print the table of such a file, play nothing")
    arguments = parser.parse_args(argv)
    for name in ("stored", "seconds", "call_s", "compress"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} is not positive; write more than 0")
    if min(arguments.workers) < 1:
        raise UserError("--workers has a number below 1; write 1 or more")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if arguments.show:
        rows = [json.loads(line) for line in arguments.show.read_text().splitlines()]
    else:
        rows = measure_all(arguments)
    print(to_text(rows))
    return 0


if __name__ == "__main__":
    run_command(main)
