"""From a study file's words to Optuna's samplers."""

from __future__ import annotations

import warnings

import optuna

from ..study import config
from .bounded import BoundedSampler


def make_sampler(sampler: config.Sampler, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that the study asks for, with this worker's own seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sampler.name == "tpe":
            _hasten_tpe()
            # Grouped and multivariate: interactions count, conditional parameters may be absent.
            tpe = optuna.samplers.TPESampler(
                n_startup_trials=sampler.startup_trials, multivariate=True, group=True, seed=seed
            )
            return BoundedSampler(tpe, sampler.history, seed)
        if sampler.name == "gp":
            gp = optuna.samplers.GPSampler(n_startup_trials=sampler.startup_trials, seed=seed)
            return BoundedSampler(gp, sampler.history, seed)
        return optuna.samplers.RandomSampler(seed=seed)


def _hasten_tpe() -> None:
    """Let TPE take logarithms of the normal distribution from SciPy.

    Optuna's own function goes number by number, in Python, which is half of what a sample costs;
    the two agree to the last digits.
    """
    from optuna.samplers._tpe import _truncnorm
    from scipy.special import log_ndtr

    _truncnorm._log_ndtr = log_ndtr
