"""``python -m benchmarks.captured``: training steps on a GPU, launched one by one and captured.

Runs of the same recipe side by side, each on another rune.  The baseline is one run whose
operations Python launches each by itself; the others are replays of a captured step
(`finetune.train.cuda_graph`), with 1, 2, 4, ... runs in one graph.  Times are of
whole steps, drawing included, once the first images are drawn; errors are standard errors over
--repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from finetune.challenge import add_data_options
from finetune.data.options import open_asked
from finetune.errors import UserError, run_command
from finetune.machine.device import standard_settings
from finetune.model.checkpoints import list_networks, load_network
from finetune.recipe import Recipe
from finetune.train.cuda_graph import CapturedSteps
from finetune.train.run import Run

from .figures import mean_and_error, ratio

_WARM_UP = 10


def milliseconds(steps: CapturedSteps, n: int) -> float:
    """Mean time of a step of all runs, over ``n``."""
    for _ in range(_WARM_UP):
        steps.draw()
        steps.train(0.5, 1e-4)
    start = time.perf_counter()
    for _ in range(n):
        steps.draw()
        steps.train(0.5, 1e-4)  # which waits for the losses
    return 1e3 * (time.perf_counter() - start) / n


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.captured", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_data_options(parser)
    add = parser.add_argument
    add("--steps", type=int, default=512, help="that are timed")
    add("--batch-size", type=int, default=Recipe.batch_size)
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    add("--runs", type=int, nargs="+", default=[1, 2, 4, 8], help="side by side")
    add("--repeats", type=int, default=3)
    add("--out", type=Path, help="append a JSON line for each measurement")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("this measures a GPU, and torch finds none")
    device = torch.device("cuda")
    source = open_asked(arguments)
    drawings = [
        source.split(rune, arguments.resize, arguments.split_seed, arguments.train).train
        for rune in islice(source.runes, max(arguments.runs))
    ]
    network = load_network(list_networks(arguments.pretrained)[0])
    recipe = Recipe(batch_size=arguments.batch_size, precision=arguments.precision)
    facts: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "batch_size": recipe.batch_size,
        "precision": recipe.precision,
        "steps": arguments.steps,
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()))

    def measure(captured: bool, n_runs: int) -> float:
        with standard_settings(device):
            runs = [
                Run(device, network, drawings[k % len(drawings)], recipe) for k in range(n_runs)
            ]
            steps = CapturedSteps(runs, device, capture=captured)
            return milliseconds(steps, arguments.steps)

    cases = [(False, 1), *((True, n) for n in arguments.runs)]
    found: dict[tuple[bool, int], list[float]] = {case: [] for case in cases}
    for repeat in tqdm(range(arguments.repeats), unit="repeat"):
        for captured, n in cases if repeat % 2 == 0 else reversed(cases):
            ms = measure(captured, n)
            found[captured, n].append(ms / n)
            if arguments.out:
                row = facts | {"captured": captured, "runs": n, "repeat": repeat, "step_ms": ms}
                with arguments.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")
    print(f"{'':<28}{'ms a step of a run':>22}{'over the baseline':>22}")
    for (captured, n), each in found.items():
        words = f"captured, {n} in a graph" if captured else "launched one by one, 1 run"
        mean, error = mean_and_error(each)
        speedup, of_speedup = ratio(found[cases[0]], each)
        print(f"{words:<28}{mean:>13.3f} ± {error:.3f}{speedup:>14.2f} ± {of_speedup:.2f}")
    fastest = min(found, key=lambda case: statistics.fmean(found[case]))
    print(f"fastest: {fastest[1]} in a graph")
    return 0


if __name__ == "__main__":
    run_command(main)
