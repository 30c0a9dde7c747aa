"""Trials: what is stored, what is pruned, what is infeasible."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor, nn

from finetune.adapt import AdaptationError, Adapted
from finetune.data import Split
from finetune.recipe import Recipe
from hpo import objective as objective_module
from hpo.config import StudyConfig
from hpo.objective import Instance, Objective
from hpo.report import best_trial
from hpo.space import recipe_of
from hpo.strategy import make_pruner


class Offset(nn.Module):
    """Predicts a constant velocity: its loss is 1 + mean (x + constant)^2."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(constant))

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return self.constant.expand_as(x_t)


@pytest.fixture
def config() -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "name": "s",
            "storage": "sqlite://",
            "limit_s": 10.0,
            "instances": {"source": "drawn"},
            "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
            "estimator": {"strata": 10, "replicates": 4},
            "pruner": {"name": "median", "startup_trials": 2},
        }
    )


@pytest.fixture
def instances() -> list[Instance]:
    blank = torch.zeros(2, 1, 28, 28)
    return [Instance(f"r{i}", 0, "unet_1", Offset(0.0), Split(blank, blank)) for i in range(3)]


def run(
    config: StudyConfig,
    instances: list[Instance],
    monkeypatch: pytest.MonkeyPatch,
    fake: Callable[[Recipe], tuple[float, float]],
    lrs: list[float],
) -> optuna.Study:
    """Trials with these learning rates; ``fake`` gives the constant and the seconds of a call."""

    def adapt(pretrained: nn.Module, drawings: Tensor, recipe: Recipe, _: Any) -> Adapted:
        constant, seconds = fake(recipe)
        return Adapted(Offset(constant), recipe.steps, seconds, stopped=False)

    monkeypatch.setattr(objective_module, "adapt", adapt)
    study = optuna.create_study(pruner=make_pruner(config.pruner))
    for lr in lrs:
        study.enqueue_trial({"lr": lr})
    study.optimize(Objective(config, instances), n_trials=len(lrs))
    return study


def by_lr(study: optuna.Study) -> dict[float, FrozenTrial]:
    return {trial.params["lr"]: trial for trial in study.trials}


def test_the_value_is_the_mean_over_instances(
    config: StudyConfig, instances: list[Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = run(config, instances, monkeypatch, lambda r: (10 * r.lr, 1.0), [0.01])
    (trial,) = study.trials
    measured = trial.user_attrs["instances"]
    assert [m["instance"] for m in measured] == ["r0/0", "r1/0", "r2/0"]
    assert trial.value == pytest.approx(sum(m["loss"] for m in measured) / 3)
    # Blank drawings: E (e - constant)^2 = 1 + constant^2.
    assert trial.value == pytest.approx(1 + 0.1**2, abs=5 * trial.user_attrs["standard_error"])
    assert list(trial.intermediate_values) == [1, 2, 3]
    assert recipe_of(trial) == Recipe(lr=0.01)
    json.dumps(trial.user_attrs)


def test_a_weak_trial_is_pruned_before_its_last_instance(
    config: StudyConfig, instances: list[Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = run(config, instances, monkeypatch, lambda r: (10 * r.lr, 1.0), [0.001, 0.002, 0.09])
    weak = by_lr(study)[0.09]
    assert weak.state == TrialState.PRUNED
    assert len(weak.user_attrs["instances"]) == 1
    assert "weak" in weak.user_attrs["why_pruned"]
    assert weak.constraints["seconds over the limit"] == pytest.approx(-9.0)


def test_a_call_over_the_limit_is_infeasible_and_never_best(
    config: StudyConfig, instances: list[Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_when_good(r: Recipe) -> tuple[float, float]:
        return 10 * r.lr, 11.0 if r.lr == 0.001 else 9.0

    study = run(config, instances, monkeypatch, slow_when_good, [0.001, 0.002])
    good = by_lr(study)[0.001]
    assert good.state == TrialState.COMPLETE
    assert good.constraints["seconds over the limit"] == pytest.approx(1.0)
    best = best_trial(study, config.limit_s)
    assert best is not None
    assert best.params["lr"] == 0.002


def test_a_loss_that_is_not_finite_ends_the_trial_with_its_reason(
    config: StudyConfig, instances: list[Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(r: Recipe) -> tuple[float, float]:
        raise AdaptationError("loss is nan at step 3")

    study = run(config, instances, monkeypatch, explode, [0.01])
    assert study.trials[0].state == TrialState.PRUNED
    assert study.trials[0].user_attrs["why_pruned"] == "loss is nan at step 3"


def test_an_interrupted_trial_fails_and_its_parameters_are_queued(
    config: StudyConfig, instances: list[Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(r: Recipe) -> tuple[float, float]:
        raise KeyboardInterrupt

    study = optuna.create_study()
    monkeypatch.setattr(objective_module, "adapt", lambda *arguments: interrupt(arguments[2]))
    study.enqueue_trial({"lr": 0.03})
    with pytest.raises(KeyboardInterrupt):
        study.optimize(Objective(config, instances), n_trials=1)
    failed, waiting = study.trials
    assert failed.state == TrialState.FAIL
    assert waiting.state == TrialState.WAITING
    assert waiting.system_attrs["fixed_params"] == {"lr": 0.03}
