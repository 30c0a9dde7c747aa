"""From a study file's words to Optuna's pruners."""

from __future__ import annotations

import optuna

from ..study import config
from .racing import RacingPruner


def make_pruner(pruner: config.Pruner) -> optuna.pruners.BasePruner:
    """The pruner that the study asks for; its steps are numbers of instances."""
    if pruner.name == "racing":
        return RacingPruner(pruner.alpha)
    if pruner.name == "none":
        return optuna.pruners.NopPruner()
    percentile = 50.0 if pruner.name == "median" else pruner.percentile
    return optuna.pruners.PercentilePruner(
        percentile, n_startup_trials=pruner.startup_trials, n_warmup_steps=0
    )
