"""Priors: values that a person thinks likely are tried first, and less often later on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from .wrapping import WrappingSampler

SPREAD = 0.25  # standard deviation, as a share of the range (in logarithms for a log parameter)
_FIRST_SHARE = 0.5  # share of the first trials that is drawn from the prior
_CHOICE = 0.5  # probability of the likely choice; the others share the rest


class PriorSampler(WrappingSampler):
    """Draws some trials from a prior, and asks another sampler for the rest.

    At first half of the trials are drawn from the prior. After n trials it is a share of
    ``trials`` / n, so that a wrong prior costs little (as in Hvarfner et al., "πBO" (2022), where
    the prior's weight falls like 1 / n).

    Args:
        likely: likely values by parameter. Numbers are drawn near them, by a normal distribution
            of `SPREAD`. In such trials all other parameters are drawn uniformly.
        trials: how many trials the prior is worth.
    """

    def __init__(
        self,
        sampler: optuna.samplers.BaseSampler,
        likely: Mapping[str, Any],
        trials: int,
        seed: int,
    ) -> None:
        super().__init__(sampler)
        self._likely, self._trials = dict(likely), trials
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._rng = np.random.default_rng([seed, 1])
        self._drawn = False  # whether the current trial is from the prior

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        n = len(study.get_trials(deepcopy=False, states=_ENDED))
        share = _FIRST_SHARE if n < 2 * self._trials else self._trials / n
        self._drawn = bool(self._rng.random() < share)
        return {} if self._drawn else self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {} if self._drawn else self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if not self._drawn:
            return self.sampler.sample_independent(study, trial, param_name, param_distribution)
        if param_name not in self._likely:
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        return draw(self._likely[param_name], param_distribution, self._rng)


_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def draw(likely: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Draw a number near the likely one, within its range; or a choice, often the likely one."""
    if isinstance(distribution, CategoricalDistribution):
        others = [choice for choice in distribution.choices if choice != likely]
        if not others or rng.random() < _CHOICE:
            return likely
        return others[int(rng.integers(len(others)))]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    scale = math.log if distribution.log else float
    low, high, center = scale(distribution.low), scale(distribution.high), scale(likely)
    while True:
        value = center + SPREAD * (high - low) * rng.standard_normal()
        if low <= value <= high:
            break
    value = math.exp(value) if distribution.log else value
    value = min(max(value, distribution.low), distribution.high)
    return round(value) if isinstance(distribution, IntDistribution) else value
