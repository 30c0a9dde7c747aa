"""``python -m benchmarks.submissions``: files to hand in, on the same runes and noise.

Each file's ``finetune_model`` is called in full, with a clock, as the grader calls it.  What it
returns is scored on the other ten drawings, on noise that is the same for every file, and timed:
CPU time of a pass of ten drawings on one thread over the plain network's, in the same process.

Rows go to a JSON lines file as they come; what stands there already is not measured again.  The
table's ratios are to the first file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from finetune.challenge import FIRST_SEED, add_data_options, load_submission, set_seed
from finetune.data.options import open_asked
from finetune.data.runes import NEW_LABEL, DrawingDataset, choose_runes
from finetune.errors import run_command
from finetune.model.checkpoints import list_networks, load_network, network_digest
from finetune.scoring.cost import measure_cost
from finetune.scoring.estimators import NoiseTable, estimate

from .figures import mean_and_error, ratio

_KEYS = ("file", "source", "resize", "split", "rune", "network", "threads")


def measure(path: Path, network: Path, arguments: argparse.Namespace, rune: str) -> dict[str, Any]:
    """The loss, its error, the call's seconds and the cost of an answer."""
    source = open_asked(arguments)
    split = source.split(rune, arguments.resize, arguments.split_seed, arguments.train)
    finetune = load_submission(path)
    pretrained = load_network(network)
    set_seed(FIRST_SEED + 1)
    start = time.perf_counter()
    model = finetune(load_network(network), DrawingDataset(split.train))
    seconds = time.perf_counter() - start
    table = NoiseTable(len(split.test), name=f"{rune}/{arguments.split_seed}")
    loss = estimate(model, split.test, NEW_LABEL, table)
    cost = measure_cost(model, pretrained, split.test, NEW_LABEL)
    return {
        "loss": loss.mean,
        "standard_error": loss.standard_error,
        "replicates": loss.replicates,
        "per_t_bin": loss.per_t_bin,
        "seconds": round(seconds, 2),
        "pass_ms": round(1e3 * cost.pass_s, 2),
        "plain_pass_ms": round(1e3 * cost.plain_pass_s, 2),
    }


def table(rows: list[dict[str, Any]], names: dict[str, str]) -> str:
    """Losses of every rune by file, then means, ratios to the first file, and costs."""
    by_file = {digest: {r["rune"]: r for r in rows if r["file"] == digest} for digest in names}
    runes = [r["rune"] for r in rows if r["file"] == next(iter(names))]
    lines = [f"{'':<16}" + "".join(f"{name:>24}" for name in names.values())]
    for rune in runes:
        cells = [
            f"{by_file[d][rune]['loss']:.4f} ± {by_file[d][rune]['standard_error']:.4f}"
            for d in names
        ]
        lines.append(f"{rune:<16}" + "".join(f"{cell:>24}" for cell in cells))
    losses = {d: [by_file[d][rune]["loss"] for rune in runes] for d in names}
    first = losses[next(iter(names))]
    parts: dict[str, list[str]] = {"mean": [], "over the first": [], "cost": [], "seconds": []}
    for d in names:
        parts["mean"].append(f"{sum(losses[d]) / len(runes):.4f}")
        over, error = ratio(losses[d], first)
        parts["over the first"].append(f"{over:.4f} ± {error:.4f}")
        costs = [by_file[d][r]["pass_ms"] / by_file[d][r]["plain_pass_ms"] for r in runes]
        parts["cost"].append("{:.2f} ± {:.2f}".format(*mean_and_error(costs)))
        parts["seconds"].append(f"{max(by_file[d][r]['seconds'] for r in runes):.1f}")
    lines += [f"{k:<16}" + "".join(f"{cell:>24}" for cell in v) for k, v in parts.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.submissions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    add_data_options(parser)
    parser.add_argument("--runes", nargs="+", metavar="RUNE", help="default: all")
    parser.add_argument("--out", type=Path, default=Path("build/submissions.jsonl"))
    parser.add_argument("--threads", type=int, help="of a call (default: torch's)")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    source = open_asked(arguments)
    runes = choose_runes(source, arguments.runes, len(source.runes))
    networks = list_networks(arguments.pretrained)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    stored = {tuple(row[k] for k in _KEYS): row for row in map(json.loads, lines)}
    # Rows of before have the name alone.
    is_whole = source.name in ("omniglot", "drawn") and arguments.train is None
    data = source.name if is_whole else f"{source.name} {source.mark(arguments.train)}"
    names = {hashlib.sha256(f.read_bytes()).hexdigest()[:12]: f.stem for f in arguments.files}
    work = [
        (i, rune, file, digest)
        for i, rune in enumerate(runes)
        for file, digest in zip(arguments.files, names, strict=True)
    ]
    asked = []
    for i, rune, file, digest in tqdm(work, desc=arguments.resize, unit="call"):
        network = networks[i % len(networks)]
        row = {
            "file": digest,
            "source": data,
            "resize": arguments.resize,
            "split": arguments.split_seed,
            "rune": rune,
            "network": network_digest(load_network(network))[:12],
            "threads": torch.get_num_threads(),
        }
        there = stored.get(tuple(row[k] for k in _KEYS))
        if there is None:
            there = row | measure(file, network, arguments, rune)
            there |= {"name": file.name, "cores": os.cpu_count(), "machine": platform.processor()}
            with arguments.out.open("a") as out:
                out.write(json.dumps(there) + "\n")
        asked.append(there)
    print(table(asked, names))
    return 0


if __name__ == "__main__":
    run_command(main)
