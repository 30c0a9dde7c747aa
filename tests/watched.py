"""A sampler and a callback that write down what a worker goes by, for tests of real workers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from hpo.worker.callbacks import TrialEnded

ENDED_LOG = "ENDED_LOG"  # variable that names the file of what callbacks are told
SEEN_KEY = "seen"  # system attribute of a trial: which finished ones its sampler was shown


class WatchedSampler(optuna.samplers.RandomSampler):
    """Stores with each trial the numbers of the finished trials that it may learn from."""

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        # What samplers of Optuna ask for.
        known = study._get_trials(deepcopy=False, use_cache=True)
        seen = [t.number for t in known if t.state.is_finished()]
        study._storage.set_trial_system_attr(trial._trial_id, SEEN_KEY, seen)
        return super().sample_relative(study, trial, search_space)


def write_down(event: TrialEnded) -> None:
    """To be named as ``[callbacks] after_trial``."""
    line = json.dumps({**asdict(event), "params": dict(event.params), "recipe": None}) + "\n"
    file = os.open(os.environ[ENDED_LOG], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    try:
        os.write(file, line.encode())  # in one piece
    finally:
        os.close(file)


def ended_in(log: Path) -> list[dict[str, Any]]:
    """What callbacks were told, in the order of the trials' ends."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
