"""From a study file's words to Optuna's samplers and pruners."""

from __future__ import annotations

import warnings

import optuna

from . import config


def make_sampler(sampler: config.Sampler, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that the study asks for, with this worker's own seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sampler.name == "tpe":
            # Grouped and multivariate: interactions count, conditional parameters may be absent.
            return optuna.samplers.TPESampler(
                n_startup_trials=sampler.startup_trials, multivariate=True, group=True, seed=seed
            )
        if sampler.name == "gp":
            return optuna.samplers.GPSampler(n_startup_trials=sampler.startup_trials, seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)


def make_pruner(pruner: config.Pruner) -> optuna.pruners.BasePruner:
    """The pruner that the study asks for; its steps are numbers of instances."""
    if pruner.name == "none":
        return optuna.pruners.NopPruner()
    percentile = 50.0 if pruner.name == "median" else pruner.percentile
    return optuna.pruners.PercentilePruner(
        percentile, n_startup_trials=pruner.startup_trials, n_warmup_steps=0
    )
