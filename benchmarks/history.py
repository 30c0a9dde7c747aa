"""``python -m benchmarks.history``: draw how a search went, for the README.

Each trial is a point: the compute that was spent when it ended, and its loss. The loss of one that
was pruned is an estimate. The line is the lowest loss of a complete trial so far.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from finetune.errors import run_command
from hpo.storage.open import load_study, looked_at
from hpo.study.config import load_study_file
from hpo.trial.run import Run, runs_of

matplotlib.use("Agg")
from matplotlib import pyplot

_SIZE_IN, _DPI = (7.2, 3.0), 110
_GREY, _BLUE = "#9aa3ad", "#1f5fa8"
_HIGHEST = 0.9  # quantile of the losses: what is above it is cut off


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("--study", required=True)
    parser.add_argument("--storage", help="database, or FILE.db.gz (default: the study file's)")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    options = parser.parse_args(argv)
    config = load_study_file(options.study)
    with looked_at(config.storage_url(options.storage), options.study) as storage:
        trials = load_study(storage, config.name).get_trials(deepcopy=False)
    draw([run for run in runs_of(trials) if run.state.is_finished()], options.out)
    print(f"{options.out}: {len(trials)} trials of study {config.name}")
    return 0


def draw(runs: Sequence[Run], out: Path) -> None:
    """Write the picture of finished trials."""
    ended = sorted(runs, key=lambda run: str(run.trial.datetime_complete))
    spent_h, hours, losses, best, lowest = 0.0, [], [], [], float("inf")
    complete = []
    for run in ended:
        spent_h += run.compute_s / 3600
        if run.loss is None:
            continue
        if run.state.name == "COMPLETE" and run.feasible:
            lowest = min(lowest, run.loss)
        hours.append(spent_h)
        losses.append(run.loss)
        best.append(lowest)
        complete.append(run.state.name == "COMPLETE")
    figure, axes = pyplot.subplots(figsize=_SIZE_IN, dpi=_DPI, layout="constrained")
    for kind, label, fill in ((False, "pruned (estimate)", "none"), (True, "complete", _GREY)):
        which = [i for i, done in enumerate(complete) if done is kind]
        x, y = [hours[i] for i in which], [losses[i] for i in which]
        axes.scatter(x, y, s=16, c=fill, edgecolors=_GREY, label=label)
    axes.step(hours, best, where="post", color=_BLUE, label="best so far")
    axes.set_ylim(0.97 * min(losses), sorted(losses)[int(_HIGHEST * (len(losses) - 1))] * 1.02)
    axes.set_xlabel("compute of one core, h")
    axes.set_ylabel("loss")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)
    pyplot.close(figure)


if __name__ == "__main__":
    run_command(main)
