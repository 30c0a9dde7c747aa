"""Optuna's own suite for samplers, on those that see a bounded history."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase

from hpo.samplers.bounded import BoundedSampler

Make = Callable[[], BaseSampler]
HISTORY = 6  # trials, fewer than most of the suite's studies have


class TestTPE(BasicSamplerTestCase, RelativeSamplerTestCase):
    """Multivariate TPE, with groups as a study has it in the basic tests alone.

    The relative ones ask for a search space of their own, which groups do not take.
    """

    @pytest.fixture
    def sampler(self, request: pytest.FixtureRequest) -> Make:
        group = hasattr(BasicSamplerTestCase, request.function.__name__)

        def make() -> BaseSampler:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                tpe = TPESampler(n_startup_trials=0, multivariate=True, group=group, seed=0)
            return BoundedSampler(tpe, HISTORY, seed=0)

        return make


class TestGP(BasicSamplerTestCase):
    """Gaussian processes, after random trials: each fit takes a tenth of a second."""

    @pytest.fixture
    def sampler(self) -> Make:
        def make() -> BaseSampler:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return BoundedSampler(GPSampler(n_startup_trials=8, seed=0), HISTORY, seed=0)

        return make
