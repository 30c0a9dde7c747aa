"""Base class of samplers that wrap another sampler."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState


class WrappingSampler(optuna.samplers.BaseSampler):
    """Delegates every method to another sampler; subclasses override what they change."""

    def __init__(self, sampler: optuna.samplers.BaseSampler) -> None:
        self.sampler = sampler

    def forget(self) -> None:
        """Drop what is cached of the trials, because one of them has changed."""
        if isinstance(self.sampler, WrappingSampler):
            self.sampler.forget()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self.sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self.sampler.reseed_rng()
