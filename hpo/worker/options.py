"""Options of ``python -m hpo.worker``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ..arguments import (
    LARGEST_SEED,
    ArtifactsOptions,
    DeviceOptions,
    DrawingsOptions,
    StudyOptions,
    option,
)

SAMPLERS = ("tpe", "gp", "random")  # Optuna's samplers, by their names in study files


@dataclass(frozen=True, kw_only=True)
class WorkerOptions(DeviceOptions, ArtifactsOptions, DrawingsOptions, StudyOptions):
    """Options of a worker."""

    trials: int | None = option(
        "stop when the study has this many finished", None, variable=True, above=0
    )
    seconds: float | None = option(
        "start no trial after this many seconds", None, variable=True, above=0
    )
    workers: int = option("processes on this machine", 1, variable=True, above=0)
    threads: int | None = option(
        "CPU threads of each worker (default: the cores, shared out)", None, variable=True, above=0
    )
    together: int = option(
        "instances measured side by side; pays on a GPU", 1, variable=True, above=0
    )
    sampler: str | None = option(
        f"{', '.join(SAMPLERS[:-1])} or {SAMPLERS[-1]} (default: the study file's)",
        None,
        variable=True,
        choices=SAMPLERS,
    )
    seed: int | None = option(
        "of this worker's sampler (default: from the study's seed and its place)",
        None,
        variable=True,
        least=0,
        most=LARGEST_SEED,
    )
    dry_run: bool = option("show the study and a sampled recipe, create nothing", False)
    # Set in workers that a pool (--workers) starts.
    in_pool: bool = option(argparse.SUPPRESS, False)
