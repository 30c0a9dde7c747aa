"""``python -m benchmarks.busy``: training steps on cores that other programs want too.

A step of the fused network on as many threads as torch takes by itself (the baseline), and on as
many as `finetune.machine.threads` chooses, beside 0, 1, ... processes that do nothing but multiply
matrices, on torch's threads as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from tqdm import tqdm

from finetune.errors import UserError, run_command
from finetune.machine.device import resolve_precision
from finetune.machine.threads import fastest_threads

from .step_profile import CPU, contenders

_LOAD = """
import torch
a = torch.rand(512, 512)
print("ready", flush=True)
while True:
    a @ a
"""
_WARM_UP = 3
_ROUNDS = 5


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Cores that ``processes`` others compute on, until the block ends."""
    others = [
        subprocess.Popen([sys.executable, "-c", _LOAD], stdout=subprocess.PIPE)
        for _ in range(processes)
    ]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        yield
    finally:
        for other in others:
            other.kill()
            other.communicate()


def milliseconds(step: Callable[[], None], chosen: bool, steps: int) -> tuple[int, float]:
    """Threads that were used, and the mean wall clock of a step."""
    with fastest_threads(CPU) if chosen else nullcontext():
        for _ in range(_WARM_UP):
            step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return torch.get_num_threads(), 1000 * (time.perf_counter() - start) / steps


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__)
    parser.add_argument("--processes", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help=f"in each of {_ROUNDS} rounds")
    arguments = parser.parse_args(argv)
    if min(arguments.processes) < 0 or min(arguments.batch_size, arguments.steps) < 1:
        raise UserError("--processes are 0 or more, --batch-size and --steps 1 or more")
    step = contenders(resolve_precision("auto", CPU), arguments.batch_size)["fused"]
    print(f"{'others':<8}{'of torch, ms':<22}{'chosen, ms':<22}{'threads':<10}times as fast")
    for processes in tqdm(arguments.processes, unit="load", leave=False):
        with busy(processes):
            # In turns, so that both meet the same moods of the machine.
            rounds = [
                [milliseconds(step, chosen, arguments.steps) for chosen in (False, True)]
                for _ in range(_ROUNDS)
            ]
        times = torch.tensor([[ms for _, ms in pair] for pair in rounds])
        ratios = times[:, 0] / times[:, 1]
        errors = times.std(0) / _ROUNDS**0.5
        (torchs, ours), (torchs_error, our_error) = times.mean(0).tolist(), errors.tolist()
        threads = ", ".join(str(n) for n in sorted({pair[1][0] for pair in rounds}))
        print(
            f"{processes:<8}{f'{torchs:.0f} ± {torchs_error:.0f}':<22}"
            f"{f'{ours:.0f} ± {our_error:.0f}':<22}{threads:<10}"
            f"{ratios.mean():.2f} ± {ratios.std() / _ROUNDS**0.5:.2f}"
        )
    return 0


if __name__ == "__main__":
    run_command(main)
