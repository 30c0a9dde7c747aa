"""``python -m benchmarks.numerics``: what instruction sets and number formats change of a loss.

The same calls, of so many steps each, are made with this processor's units for bf16, in float32,
and in float32 as on a processor that has AVX2 alone.  Printed is the loss of each, and its
difference to the first with the standard error over runes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from hpo.errors import UserError, run_command
from hpo.problem.measure import measure
from hpo.study.config import load_study_file

from .arguments import positive
from .figures import mean_and_error

# By name: the recipe's precision, and what torch and its kernels are told of the processor.
WAYS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "bf16": ("bf16", {}),
    "fp32": ("fp32", {}),
    "fp32, AVX2": ("fp32", {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
}


def losses(study: str, data: Path | None, runes: int, steps: int, precision: str) -> list[float]:
    """The default recipe's losses on the study's first instances, in calls of so many steps."""
    config = load_study_file(study)
    method, problem = config.load_method(), config.load_problem(data)
    values = method.complete({**config.fixed, "precision": precision})
    found = []
    for instance in problem.instances()[:runes]:
        (call,) = measure(method, problem, values, [instance], 1e6, lambda *_: None, steps=[steps])
        found.append(call.evaluation.loss)
    return found


def table(found: Mapping[str, list[float]]) -> str:
    """A Markdown table; differences are to the first row's."""
    first = next(iter(found.values()))
    lines = ["| numbers | loss | difference | largest |", "|---|---|---|---|"]
    for name, of in found.items():
        differences = [one - other for one, other in zip(of, first, strict=True)]
        mean, error = mean_and_error(differences)
        largest = max(map(abs, differences))
        shown = f"{mean:+.5f} ± {error:.5f} | {largest:.5f}" if largest else " | "
        lines.append(f"| {name} | {sum(of) / len(of):.5f} | {shown} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numerics", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--study", default="runes", help="whose instances (default: runes)")
    add("--data", type=Path, help="directory of omniglot-py; also $RUNES_DATA")
    add("--runes", type=positive, default=4, metavar="N", help="the study's first (default: 4)")
    add("--steps", type=positive, default=400, help="of each call (default: 400)")
    add("--way", choices=WAYS, help=argparse.SUPPRESS)  # of a process that this one starts
    options = parser.parse_args(argv)
    if options.way:
        precision = WAYS[options.way][0]
        of = losses(options.study, options.data, options.runes, options.steps, precision)
        print(json.dumps(of))
        return 0
    found = {}
    for name, (_, variables) in WAYS.items():
        arguments = [*(argv if argv is not None else sys.argv[1:]), "--way", name]
        command = [sys.executable, "-m", "benchmarks.numerics", *arguments]
        done = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(f"{name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        found[name] = json.loads(done.stdout)
    print(table(found))
    return 0


if __name__ == "__main__":
    run_command(main)
