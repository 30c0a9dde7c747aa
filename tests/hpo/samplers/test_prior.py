"""Priors: draws lie near what is likely, soon become few, and leave the rest to the sampler."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from hpo.samplers.prior import SPREAD, PriorSampler, draw
from hpo.samplers.registry import Sampler, make_sampler
from hpo.study.config import StudyConfig
from tests.cheap import CHEAP

LR = FloatDistribution(1e-4, 1e-2, log=True)


def test_draws_are_normal_around_the_value_and_within_the_range() -> None:
    rng = np.random.default_rng(0)
    drawn = np.log10([draw(1e-3, LR, rng) for _ in range(4000)])
    assert drawn.min() >= -4 and drawn.max() <= -2
    assert drawn.mean() == pytest.approx(-3, abs=0.03)
    # Two decades; a normal distribution cut off at two deviations has 0.88 of its deviation.
    assert drawn.std() == pytest.approx(0.88 * 2 * SPREAD, rel=0.05)
    whole = {draw(8, IntDistribution(1, 64, log=True), rng) for _ in range(200)}
    assert all(isinstance(v, int) and 1 <= v <= 64 for v in whole) and len(whole) > 10
    edge = [draw(1e-4, LR, rng) for _ in range(200)]
    assert min(edge) >= 1e-4
    letters = [draw("b", CategoricalDistribution(["a", "b", "c"]), rng) for _ in range(900)]
    assert letters.count("b") / 900 == pytest.approx(0.5, abs=0.06)
    assert letters.count("a") / 900 == pytest.approx(0.25, abs=0.06)


class Marked(optuna.samplers.RandomSampler):
    """Says that it was asked by a value of its own."""

    def sample_independent(self, *_: Any, **__: Any) -> float:
        return 1e-2


def test_half_of_the_first_trials_are_drawn_and_fewer_later() -> None:
    sampler = PriorSampler(Marked(), {"lr": 1e-3}, trials=10, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("lr", 1e-4, 1e-2, log=True), 300)
    from_prior = np.array([t.params["lr"] != 1e-2 for t in study.trials])
    assert from_prior[:20].sum() == pytest.approx(10, abs=5)
    expected = sum(10 / n for n in range(150, 300))
    assert from_prior[150:].sum() == pytest.approx(expected, abs=7)


def test_a_study_file_names_likely_values() -> None:
    table = Sampler.model_validate({"prior": {"lr": 1e-3}})
    study = optuna.create_study(sampler=make_sampler(table, 0))
    study.optimize(lambda trial: (trial.suggest_float("lr", 1e-4, 1e-2, log=True) - 2e-3) ** 2, 15)
    assert study.best_params["lr"] == pytest.approx(2e-3, abs=1e-3)
    for prior, words in (({"x": 1}, "sampler.prior names 'x'"), ({"lr": 1}, "prior.lr is 1, out")):
        with pytest.raises(ValidationError, match=words):
            StudyConfig.model_validate(
                {
                    **CHEAP,
                    "name": "s",
                    "storage": "sqlite:///s.db",
                    "instances": {"source": "drawn"},
                    "sampler": {"prior": prior},
                    "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
                }
            )
