"""``python -m hpo.worker --study NAME``: join a study and run trials until its budget is spent."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import time
import zlib
from pathlib import Path

import numpy as np

from finetune.errors import UserError, run_command

# Optuna and torch take seconds to import; `--help` needs neither.


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hpo.worker", description=__doc__)
    parser.add_argument("--study", required=True, help="name in studies/, or path of a study file")
    parser.add_argument("--storage", help="database URL (default: the study file's)")
    parser.add_argument("--data", type=Path, help="directory of omniglot-py (default: $RUNES_DATA)")
    parser.add_argument("--trials", type=int, help="stop when the study has this many")
    parser.add_argument("--seconds", type=float, help="start no trial after this many seconds")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--seed", type=int, help="of this worker's sampler (default: its own)")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the study and a sampled recipe, create nothing"
    )
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run_worker(
        arguments.study,
        storage_url=arguments.storage,
        data=arguments.data,
        trials=arguments.trials,
        seconds=arguments.seconds,
        threads=arguments.threads,
        seed=arguments.seed,
        dry_run=arguments.dry_run,
    )


def run_worker(
    study_name: str,
    *,
    storage_url: str | None = None,
    data: Path | None = None,
    trials: int | None = None,
    seconds: float | None = None,
    threads: int | None = None,
    seed: int | None = None,
    dry_run: bool = False,
) -> int:
    """Run trials of a study until its budget is spent; returns the exit code.

    Raises:
        UserError: the study file, the data, the networks or the database are not usable, or the
            study was made to measure something else.
        KeyboardInterrupt: the trial at hand is failed and queued again.
    """
    started = time.monotonic()
    for option, value in (("trials", trials), ("seconds", seconds), ("threads", threads)):
        if value is not None and value <= 0:
            raise UserError(f"--{option} is {value:g}; write more than 0")
    import optuna
    import torch

    from finetune.data import open_source

    from .config import load_study
    from .manifest import make_manifest, record_or_check
    from .objective import Objective, load_instances
    from .preview import print_preview
    from .report import print_summary, show_trial
    from .storage import open_storage, open_study
    from .strategy import make_pruner, make_sampler

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it logs tracebacks as warnings
    if threads is not None:
        torch.set_num_threads(threads)
    config = load_study(study_name)
    try:
        source = open_source(config.instances.source, data)
    except UserError as error:
        if config.instances.source == "omniglot":
            raise UserError(f"{error}; --study quickstart needs no data") from error
        raise
    instances = load_instances(config.instances, source)
    url = storage_url or config.storage
    manifest = make_manifest(config, source, instances)
    if dry_run:
        print_preview(config, instances, url, manifest)
        return 0
    storage = open_storage(url)
    seed = seed if seed is not None else _worker_seed(config.sampler.seed)
    study, created = open_study(
        storage, config.name, make_sampler(config.sampler, seed), make_pruner(config.pruner)
    )
    record_or_check(study, manifest, created)
    if created:
        for parameters in config.start:
            study.enqueue_trial(parameters)

    trials = trials if trials is not None else config.budget.trials
    seconds = seconds if seconds is not None else config.budget.seconds
    print(
        f"study {config.name}: {len(instances)} instances, "
        f"{len(study.get_trials(deepcopy=False))} trials so far, {torch.get_num_threads()} threads"
    )

    def spent() -> bool:
        if seconds is not None and time.monotonic() - started >= seconds:
            return True
        finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        return trials is not None and len(study.get_trials(False, finished)) >= trials

    objective = Objective(config, instances)
    while not spent():
        study.optimize(objective, n_trials=1, callbacks=[show_trial])
    print_summary(study, config, url)
    return 0


def _worker_seed(study_seed: int) -> int:
    """A seed of this process's own: equal seeds would make equal first trials."""
    host = zlib.crc32(socket.gethostname().encode())
    entropy = [study_seed, host, os.getpid(), time.time_ns()]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


if __name__ == "__main__":
    run_command(main)
