"""The quick start's file: what the search needs to win within two minutes."""

from __future__ import annotations

import optuna
import pytest

from hpo.analysis.importance import NEEDED
from hpo.clock.plan import Clock
from hpo.clock.profile import load_profile
from hpo.problem.calibration import calibration_instance
from hpo.problem.recipe_method import RecipeMethod
from hpo.study.config import StudyConfig, load_study_file
from hpo.study.space import sample_values

BESIDE_S = 0.8  # of a trial beside its call, on the machine of the profile: loss, picture, database


@pytest.fixture(scope="module")
def config() -> StudyConfig:
    return load_study_file("quickstart")


def test_it_begins_with_one_recipe_that_the_search_can_leave(config: StudyConfig) -> None:
    (start,) = config.start
    assert set(start) == set(config.space)
    # The first guess warps the drawing; to draw it anew is the search's to find.
    assert start["render"] == "direct"
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(50)]
    for trial in trials:
        sample_values(trial, config.space, config.fixed, RecipeMethod())
    assert 15 < sum(trial.params["render"] == "pen" for trial in trials) < 35


def test_two_minutes_on_two_cores_are_enough_to_tell_what_matters(config: StudyConfig) -> None:
    assert config.budget.seconds is not None and config.budget.seconds <= 110
    assert config.instances.runes is not None
    assert len(config.instances.runes) == 1  # so every trial is complete
    method, instance = RecipeMethod(), calibration_instance(0)
    clock = Clock(load_profile("two-core-fp32"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seconds = [
        clock.plan(
            method, sample_values(study.ask(), config.space, config.fixed, method), instance
        ).seconds
        for _ in range(20)
    ]
    expected = config.budget.seconds / (sum(seconds) / len(seconds) + BESIDE_S)
    assert expected > 1.2 * NEEDED
