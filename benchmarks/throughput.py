"""``python -m benchmarks.throughput``: a naive script and ours, trial for trial, on one machine.

Both adapt the same network to the same drawings on the same number of augmented images, then
evaluate it on ten other drawings.

naive  one process: batches of ten from a DataLoader, each image augmented alone, fp32, plain
       AdamW; then the author's validation, 1000 passes over ten images, one after another
ours   the call and the estimate that trials of a study make: one worker with all cores, and a
       worker for each core, all at once; with --together, one worker with so many calls side by
       side, as it makes them on a GPU (its seconds are shared out among them)

They run in turn, --repeats times, each in fresh processes; errors are standard errors over the
repeats, and ratios are of means, with the error of paired repeats.  Rates are of the whole
machine; those of training are per second of the whole call.  The machine's peaks, in the
precision of the steps and with all cores, are measured in the same run.  What the database of a
study costs a trial is not in here: see `benchmarks.storage`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from finetune.challenge import add_data_options
from finetune.data.options import open_asked
from finetune.data.runes import choose_runes
from finetune.errors import UserError, run_command
from finetune.model.checkpoints import list_networks, load_network
from finetune.recipe import Recipe, RecipeError
from finetune.scoring.estimators import NoiseTable
from hpo.process.devices import n_cores

from .flops import Flops, Peak, count_flops, measure_peak
from .throughput_case import NAIVE_BATCH, Case, Worked, in_fresh_process, measure
from .throughput_growth import BATCH_SIZES, STEPS, count_up, grow
from .throughput_table import growth_table, table

Row = dict[str, Any]
_NO_DEADLINE_S = 1e6
_PEAK_S = 1.0  # of a precision and a kind of product


def make_row(case: Case, repeat: int, worked: Sequence[Worked], flops: Flops) -> Row:
    """A contender's figures in one repeat; those that time a trial are means over trials."""
    trials = [trial for w in worked for trial in w.trials]

    def rate(amount: Callable[[Any], float], seconds: Callable[[Any], float]) -> float:
        """Of all workers together."""
        return sum(sum(map(amount, w.trials)) / sum(map(seconds, w.trials)) for w in worked)

    train_images_per_s = rate(lambda t: t.images, lambda t: t.train_s)
    return {
        "contender": case.contender,
        "workers": case.workers,
        "together": case.together,
        "threads": worked[0].threads,
        "repeat": repeat,
        "precision": worked[0].precision,
        "steps": case.recipes[0].steps,
        "batch_size": NAIVE_BATCH if case.contender == "naive" else case.recipes[0].batch_size,
        "images": trials[0].images // trials[0].calls,
        "evaluations": trials[0].evaluations // trials[0].calls,
        "trials": sum(t.calls for t in trials),
        "train_s": statistics.fmean(t.train_s / t.calls for t in trials),
        "first_step_s": statistics.fmean(t.marks[0] for t in trials),
        "eval_s": statistics.fmean(t.eval_s / t.calls for t in trials),
        "trials_per_hour": 3600 * rate(lambda t: t.calls, lambda t: t.train_s + t.eval_s),
        "train_images_per_s": train_images_per_s,
        "eval_images_per_s": rate(lambda t: t.evaluations, lambda t: t.eval_s),
        "loss": statistics.fmean(t.loss for t in trials),
        "standard_error": statistics.fmean(t.standard_error for t in trials),
        "peak_mib": max(w.peak_mib for w in worked),
        "gpu_peak_mib": max(w.gpu_peak_mib for w in worked),
        "train_gflops": 1e-9 * flops.training * train_images_per_s,
    }


def with_peak(row: Row, peak: Peak) -> Row:
    """The row with the machine's peaks in its precision, GFLOP/s, and its shares of them."""
    return row | {
        "peak_matrices_gflops": peak.matrices,
        "peak_convolution_gflops": peak.convolution,
        "share_of_matrices": row["train_gflops"] / peak.matrices,
        "share_of_convolution": row["train_gflops"] / peak.convolution,
    }


def compare(cases: Sequence[Case], repeats: int, keep: Callable[[Row], None]) -> list[Row]:
    """Measure each case so many times, in turn; ``keep`` gets each row as it comes."""
    flops = count_flops(load_network(cases[0].network))
    rows = []
    with tqdm(total=repeats * len(cases), desc="throughput", unit="contender") as progress:
        for repeat in range(repeats):
            found = []
            # There and back: what drifts meets all of them alike.
            for case in cases if repeat % 2 == 0 else reversed(cases):
                found.append(make_row(case, repeat, measure(case), flops))
                progress.update()
            peaks = {
                precision: in_fresh_process(measure_peak, precision, n_cores(), _PEAK_S)
                for precision in dict.fromkeys(row["precision"] for row in found)
            }
            for row in found:
                rows.append(with_peak(row, peaks[row["precision"]]))
                keep(rows[-1])
    return rows


def measure_growth(
    case: Case, workers: int, repeats: int, keep: Callable[[Row], None]
) -> list[Row]:
    """How the cost of ``case`` grows, so many times, with up to so many workers."""
    rows = []
    counts = count_up(workers)
    total = repeats * (len(BATCH_SIZES) + len(STEPS) + len(counts))
    with tqdm(total=total, desc="growth", unit="point") as progress:
        for repeat in range(repeats):
            for row in grow(case, counts):
                rows.append(row | {"repeat": repeat, "batch_size": case.recipes[0].batch_size})
                keep(rows[-1])
                progress.update()
    return rows


def machine() -> Row:
    """What the figures depend on beside the code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": n_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 2),  # before anything here ran
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_data_options(parser)
    add = parser.add_argument
    add("--rune", help="default: the first")
    add("--steps", type=int, default=Recipe.steps, help="of our recipe")
    add("--batch-size", type=int, default=Recipe.batch_size, help="of our recipe")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of our recipe")
    add("--repeats", type=int, default=3, help="of each contender")
    add("--trials", type=int, default=1, help="of each worker in each repeat")
    add("--t-passes", type=int, default=1000, help="of the author's validation")
    add("--workers", type=int, default=n_cores(), help="of one thread each (the cores); 0: none")
    add("--together", type=int, default=1, help="and ours with so many calls side by side")
    add("--grow", action="store_true", help="instead: how the cost of ours grows")
    add("--out", type=Path, help="append a JSON line for each contender and repeat")
    arguments = parser.parse_args(argv)
    limits = {"repeats": 1, "trials": 1, "t_passes": 2, "workers": 0, "together": 1}
    for name, least in limits.items():
        value = getattr(arguments, name)
        if value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; write {least} or more")
    return arguments


def make_cases(arguments: argparse.Namespace) -> tuple[list[Case], Row]:
    """The contenders, the naive one first, and what they are measured on."""
    try:
        recipe = Recipe(
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            precision=arguments.precision,
            output="velocity",  # as the naive script learns it
            deadline_s=_NO_DEADLINE_S,
        )
    except RecipeError as error:
        raise UserError(str(error)) from error
    source = open_asked(arguments)
    rune = choose_runes(source, [arguments.rune] if arguments.rune else None, 1)[0]
    split = source.split(rune, arguments.resize, arguments.split_seed, arguments.train)
    naive = Case(
        contender="naive",
        workers=1,
        threads=None,
        recipes=(recipe,) * arguments.trials,
        network=list_networks(arguments.pretrained)[0],
        train=split.train.numpy(),
        test=split.test.numpy(),
        passes=arguments.t_passes,
        table=NoiseTable(len(split.test)),
    )
    cases = [naive, replace(naive, contender="ours", threads=n_cores())]
    if arguments.workers and (arguments.workers, 1) != (1, n_cores()):
        cases.append(replace(naive, contender="ours", workers=arguments.workers, threads=1))
    if arguments.together > 1:
        cases.append(replace(cases[1], together=arguments.together))
    return cases, {"source": source.name, "rune": rune, "resize": arguments.resize}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    facts = machine()
    cases, about = make_cases(arguments)
    facts = about | facts
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)

    def keep(row: Row) -> None:
        if arguments.out:
            with arguments.out.open("a") as out:
                out.write(json.dumps(row | facts) + "\n")

    print(", ".join(f"{name} {value}" for name, value in facts.items() if value is not None))
    if arguments.grow:
        print(growth_table(measure_growth(cases[1], arguments.workers, arguments.repeats, keep)))
    else:
        print(table(compare(cases, arguments.repeats, keep)))
    return 0


if __name__ == "__main__":
    run_command(main)
