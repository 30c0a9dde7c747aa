"""``python -m benchmarks.kills``: what SIGKILL costs workers whose calls take seconds.

Real workers run a study of real calls on the embedded drawings. For a minute one after another is
killed at a random moment, and another starts in its place; then the rest finish. Each call writes
down when it begins and ends, so what was paid twice is counted, and beside it what the same kills
would have cost if a trial had begun anew after each.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.trial import TrialState

from finetune.errors import UserError, run_command
from hpo.problem.recipe_method import RecipeMethod
from hpo.storage.open import load_study, open_storage
from hpo.trial.record import read_trial

from .logged import LOG, Logged, entries

_N_SEEDS = 4  # calls of a trial
_STUDY = """
name = "kills"
storage = "sqlite:///kills.db"
artifacts = "none"
limit_s = 600.0
margin_s = 0.0
[method]
name = "benchmarks.kills:LoggedRecipe"
[instances]
source = "drawn"
runes = ["thorn"]
seeds = {seeds}
[estimator]
strata = 4
replicates = 2
[sampler]
name = "random"
[pruner]
name = "none"
[recovery]
heartbeat_s = 0.5
grace_s = 2.0
retries = 100  # a kill is no fault of the recipe
[fixed]
steps = {steps}
deadline_s = 600.0
[space.lr]
type = "float"
low = 1e-3
high = 1e-2
log = true
"""


class LoggedRecipe(Logged, RecipeMethod):
    """Its calls are those of the recipe."""


@dataclass(frozen=True)
class CallMade:
    """A call that a process began."""

    pid: int
    recipe: str
    instance: str
    began_s: float  # since the epoch
    ended_s: float | None  # None: its process was killed in it


@dataclass(frozen=True)
class Costs:
    """What the kills cost."""

    calls: int  # that the study needed
    call_s: float  # mean length
    again: int  # calls that were begun again
    again_s: float  # that went into calls which were begun again later
    whole_s: float  # that would have been lost with all calls of the trial at hand


def calls_of(log: Path, killed_at: dict[int, float]) -> list[CallMade]:
    """All calls that were begun, in their order."""
    open_calls: dict[int, CallMade] = {}
    found: list[CallMade] = []
    for entry in entries(log):
        if entry.what == "begin":
            call = CallMade(entry.pid, entry.recipe, entry.instance, entry.at_s, None)
            open_calls[entry.pid] = call
        else:
            found.append(replace(open_calls.pop(entry.pid), ended_s=entry.at_s))
    found += [call for pid, call in open_calls.items() if pid in killed_at]
    return sorted(found, key=lambda call: call.began_s)


def costs_of(calls: Sequence[CallMade], killed_at: dict[int, float]) -> Costs:
    """What was paid twice, and what would have been if trials began anew."""

    def seconds(call: CallMade) -> float:
        end_s = killed_at[call.pid] if call.ended_s is None else call.ended_s
        return max(0.0, end_s - call.began_s)

    by_key: dict[tuple[str, str], list[CallMade]] = defaultdict(list)
    for call in calls:
        by_key[call.recipe, call.instance].append(call)
    again_s = sum(seconds(call) for made in by_key.values() for call in made[:-1])
    whole_s = 0.0
    for pid, at_s in killed_at.items():
        mine = [call for call in calls if call.pid == pid]
        at_hand = mine[-1].recipe if mine else ""
        of_trial = {c.instance: c for c in calls if c.recipe == at_hand and c.began_s < at_s}
        finished = {i for i, c in of_trial.items() if c.ended_s is not None}
        if len(finished) < _N_SEEDS:
            whole_s += sum(seconds(call) for call in of_trial.values())
    lengths = [seconds(call) for call in calls if call.ended_s is not None]
    again = len(calls) - len(by_key)
    return Costs(len(by_key), sum(lengths) / len(lengths), again, again_s, whole_s)


def run(folder: Path, seconds: float, workers: int, trials: int, steps: int, seed: int) -> str:
    """Run and kill workers; returns the figures, as one line.

    Raises:
        UserError: the study did not finish as it should, or more was paid twice than a call a kill.
    """
    study, log, database = (folder / name for name in ("kills.toml", "calls.log", "kills.db"))
    study.write_text(_STUDY.format(seeds=list(range(_N_SEEDS)), steps=steps))
    command = [sys.executable, "-m", "hpo.worker", "--study", str(study), "--threads", "1"]
    command += ["--trials", str(trials)]
    variables = {LOG: str(log), "RUNES_STORAGE": f"sqlite:///{database}"}

    def start() -> subprocess.Popen[bytes]:
        with (folder / "workers.log").open("ab") as said:
            return subprocess.Popen(
                command, env=os.environ | variables, stdout=said, stderr=subprocess.STDOUT
            )

    rng = random.Random(seed)
    killed_at: dict[int, float] = {}
    alive = [start() for _ in range(workers)]
    try:
        while not log.exists():
            if all(worker.poll() is not None for worker in alive):
                raise UserError(f"no worker began: {(folder / 'workers.log').read_text()[:200]}")
            time.sleep(0.1)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(rng.uniform(2.0, 6.0))
            alive = [worker for worker in alive if worker.poll() is None]
            if not alive:
                break
            victim = alive.pop(rng.randrange(len(alive)))
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            killed_at[victim.pid] = time.time()
            alive.append(start())
        codes = [worker.wait() for worker in alive]
    finally:
        for worker in alive:
            worker.kill()
            worker.wait()
    storage = open_storage(f"sqlite:///{database}")
    finished = load_study(storage, "kills").get_trials(deepcopy=False)
    storage.engine.dispose()
    if any(codes) or [t.state for t in finished] != [TrialState.COMPLETE] * trials:
        raise UserError(f"the study did not finish; see {folder / 'workers.log'}")
    if any(len(read_trial(t).instances) != _N_SEEDS for t in finished):
        raise UserError("a trial lacks a call")
    costs = costs_of(calls_of(log, killed_at), killed_at)
    if costs.again > len(killed_at):
        raise UserError(f"{costs.again} calls were begun again after {len(killed_at)} kills")
    needed_s = costs.calls * costs.call_s
    return (
        f"{len(killed_at)} kills, {costs.calls} calls of {costs.call_s:.1f} s "
        f"({needed_s:.0f} s): begun again {costs.again}, {costs.again_s:.0f} s paid twice, "
        f"{costs.again_s / max(1, len(killed_at)):.1f} s a kill; "
        f"with whole trials it were {costs.whole_s:.0f} s"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of killing")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60, help="of a call")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        print(run(Path(folder), a.seconds, a.workers, a.trials, a.steps, a.seed))
    return 0


if __name__ == "__main__":
    run_command(main)
