"""Trials: what is stored, what is pruned, what is infeasible."""

from __future__ import annotations

import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor, nn

from finetune.adapt import AdaptationError, Adapted, Progress
from finetune.data.runes import Split
from finetune.recipe import Recipe
from finetune.scoring.cost import Cost
from hpo.problem import evaluate
from hpo.problem.instances import Instance
from hpo.pruners.registry import make_pruner
from hpo.storage.open import load_study, open_storage
from hpo.study.config import Budget, Limits, Pruner, Recovery, StudyConfig
from hpo.trial.ranking import best_trial
from hpo.trial.recipe import recipe_of
from hpo.trial.record import read_trial
from hpo.worker import objective as objective_module
from hpo.worker.display import Display
from hpo.worker.loop import Loop, WorkerFailedError
from hpo.worker.objective import Objective
from tests.hpo.standins import one_by_one

Fake = Callable[..., Any]


class Offset(nn.Module):
    """Predicts a constant velocity: its loss is 1 + mean (x + constant)^2."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(constant))

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return self.constant.expand_as(x_t)


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "name": "s",
            "storage": f"sqlite:///{tmp_path}/s.db",
            "limit_s": 12.0,
            "margin_s": 2.0,
            "instances": {"source": "drawn"},
            "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
            "estimator": {"strata": 10, "replicates": 4},
            "pruner": {"name": "median", "startup_trials": 2},
        }
    )


@pytest.fixture
def instances() -> list[Instance]:
    blank = torch.zeros(2, 1, 28, 28)
    return [Instance(f"r{i}", 0, "unet_1", i, Offset(0.0), Split(blank, blank)) for i in range(3)]


Run = Callable[..., list[FrozenTrial]]


@pytest.fixture
def run(config: StudyConfig, instances: list[Instance], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs trials with these learning rates, in this order.

    ``fake`` gives the constant that a recipe's call ends with and its seconds, or is `adapt`.
    """

    def run(fake: Fake, lrs: list[float], together: int = 1) -> list[FrozenTrial]:
        def adapt(pretrained: nn.Module, drawings: Tensor, recipe: Recipe, on_step: Any) -> Adapted:
            constant, seconds = fake(recipe)
            on_step(Progress(step=1, share=0.5, loss=1.0, elapsed_s=seconds))
            return Adapted(Offset(constant), recipe.steps, seconds, stopped=False)

        whole_call = len(signature(fake).parameters) > 1
        monkeypatch.setattr(evaluate, "adapt_together", one_by_one(fake if whole_call else adapt))
        storage = open_storage(config.storage, worker="me")
        storage.create_study("s", {}, [{"lr": lr} for lr in lrs])
        study = load_study(storage, "s", pruner=make_pruner(config.pruner))
        with Display("s", None, 0) as display:
            Loop(
                feasible_cost=config.limits.cost,
                study=study,
                storage=storage,
                run=Objective(config, instances, together=together),
                budget=Budget(trials=len(lrs)),
                recovery=Recovery(failures=2),
                display=display,
                feasible_s=config.feasible_s,
            ).work()
        return study.get_trials()

    return run


def test_the_value_is_the_mean_over_instances(run: Run) -> None:
    (trial,) = run(lambda r: (10 * r.lr, 1.0), [0.01])
    measured = trial.user_attrs["instances"]
    assert [m["instance"] for m in measured] == ["r0/0", "r1/0/1", "r2/0/2"]
    assert [m["steps"] for m in measured] == 3 * [recipe_of(read_trial(trial)).steps]
    assert trial.value == pytest.approx(sum(m["loss"] for m in measured) / 3)
    # Blank drawings: E (e - constant)^2 = 1 + constant^2.
    assert trial.value == pytest.approx(1 + 0.1**2, abs=5 * trial.user_attrs["standard_error"])
    assert list(trial.intermediate_values) == [1, 2, 3]
    assert recipe_of(read_trial(trial)) == Recipe(lr=0.01)
    assert trial.user_attrs["outcome"] == "complete"
    assert trial.user_attrs["worker"] == "me"
    json.dumps(trial.user_attrs)


def test_each_call_has_its_instances_seed(run: Run) -> None:
    seeds = []
    run(lambda r: (float(seeds.append(r.seed) or 0), 1.0), [0.01])  # type: ignore[func-returns-value]
    assert seeds == [0, 1, 2]


def test_a_weak_trial_is_pruned_before_its_last_instance(run: Run) -> None:
    *complete, weak = run(lambda r: (10 * r.lr, 1.0), [0.001, 0.002, 0.09])
    assert weak.state == TrialState.PRUNED
    assert len(weak.user_attrs["instances"]) == 1
    assert weak.user_attrs["outcome"] == "pruned"
    assert "weak after 1 of 3" in weak.user_attrs["reason"]
    # What all three would give, by the complete trials: the noise of each is its own.
    losses = torch.tensor([[m["loss"] for m in t.user_attrs["instances"]] for t in complete])
    difficulty = losses.log().mean(0).exp()
    expected = weak.intermediate_values[1] * (difficulty.mean() / difficulty[0]).item()
    assert weak.value == pytest.approx(expected)
    assert weak.constraints["seconds over the limit"] == pytest.approx(-9.0)


def test_a_trial_that_is_raced_out_gets_the_loss_that_it_probably_has(
    run: Run, config: StudyConfig
) -> None:
    object.__setattr__(config, "pruner", Pruner(name="racing", alpha=0.2))
    lrs = [0.001, 0.002, 0.0015, 0.0012, 0.09]
    weak = run(lambda r: (10 * r.lr * (1 + 0.1 * r.seed), 1.0), lrs)[-1]
    assert weak.user_attrs["outcome"] == "pruned"
    seen = weak.user_attrs["instances"]
    assert 0 < len(seen) < 3
    assert f"weak after {len(seen)} of 3 instances: 1." in weak.user_attrs["reason"]
    # Later instances are harder, by a factor that the earlier trials' losses tell.
    assert weak.value != weak.intermediate_values[len(seen)]
    assert weak.value == pytest.approx(seen[0]["loss"], rel=0.05)


def test_calls_side_by_side_tell_what_they_tell_alone(run: Run, config: StudyConfig) -> None:
    def fake(r: Recipe) -> tuple[float, float]:
        return 10 * r.lr * (1 + r.seed), 1.0 + r.seed

    (alone,) = run(fake, [0.01])
    object.__setattr__(config, "storage", config.storage.replace(".db", "-2.db"))
    (beside,) = run(fake, [0.01], together=2)
    assert [m["instance"] for m in beside.user_attrs["instances"]] == ["r0/0", "r1/0/1", "r2/0/2"]
    for trial in (alone, beside):
        for measured in trial.user_attrs["instances"]:
            assert measured.pop("cost") > 0  # a time, which differs from call to call
    for key in ("instances", "standard_error", "longest_call_s"):
        assert beside.user_attrs[key] == alone.user_attrs[key]
    assert beside.intermediate_values == alone.intermediate_values
    assert beside.value == alone.value


def test_a_title_names_the_first_of_calls_side_by_side(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []

    def show(self: Display, title: str, share: float = 0.0, loss: float | None = None) -> None:
        titles.append(title)

    monkeypatch.setattr(Display, "show_trial", show)
    run(lambda r: (10 * r.lr, 1.0), [0.001], together=2)
    assert list(dict.fromkeys(titles)) == ["trial 0, r0/0 + 1 more (2/3)", "trial 0, r2/0/2 (3/3)"]


def test_calls_side_by_side_are_judged_together(run: Run) -> None:
    weak = run(lambda r: (10 * r.lr, 1.0), [0.001, 0.002, 0.09], together=2)[2]
    assert weak.user_attrs["outcome"] == "pruned"
    assert list(weak.intermediate_values) == [1, 2]
    assert "weak after 2 of 3" in weak.user_attrs["reason"]


def test_a_stop_names_all_that_went_side_by_side(run: Run) -> None:
    (trial,) = run(lambda r: (0.0, 12.5), [0.01], together=3)
    assert "stopped on r0/0 and r1/0/1 and r2/0/2 after 12.5 s" in trial.user_attrs["reason"]


def test_a_run_far_above_all_known_curves_is_hopeless(run: Run) -> None:
    def adapt(pretrained: nn.Module, drawings: Tensor, recipe: Recipe, on_step: Any) -> Adapted:
        for step in range(1, 33):
            on_step(Progress(step, step / 32, 10 * recipe.lr + 1 / step, elapsed_s=1.0))
        return Adapted(Offset(0.0), 32, 1.0, stopped=False)

    lrs = [0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.1]
    *fine, bad = run(adapt, lrs)
    assert [t.state for t in fine] == [TrialState.COMPLETE] * 6
    assert bad.user_attrs["outcome"] == "hopeless"
    assert bad.constraints["failed"] > 0
    assert "on r0/0: training loss 1.0" in bad.user_attrs["reason"]
    assert "far above 6 earlier ones" in bad.user_attrs["reason"]


def test_a_call_near_the_limit_is_infeasible_and_never_best(run: Run, config: StudyConfig) -> None:
    good, _ = run(lambda r: (10 * r.lr, 11.0 if r.lr == 0.001 else 9.0), [0.001, 0.002])
    assert good.state == TrialState.PRUNED
    assert good.user_attrs["outcome"] == "infeasible"
    assert "took 11.0 s; 10 are allowed" in good.user_attrs["reason"]
    assert good.constraints["seconds over the limit"] == pytest.approx(1.0)
    assert good.system_attrs["constraints"] == [pytest.approx(1.0)]  # where the dashboard looks
    best = best_trial(load_study(open_storage(config.storage), "s"))
    assert best is not None
    assert best.params["lr"] == 0.002


def test_a_call_at_the_limit_is_stopped(run: Run) -> None:
    (trial,) = run(lambda r: (0.0, 12.5), [0.01])
    assert trial.user_attrs["outcome"] == "out of time"
    assert "stopped on r0/0 after 12.5 s" in trial.user_attrs["reason"]
    assert trial.constraints["failed"] > 0
    assert "instances" not in trial.user_attrs


def test_a_loss_that_is_not_finite_ends_the_trial_and_samplers_learn_of_it(run: Run) -> None:
    def explode(r: Recipe) -> tuple[float, float]:
        if r.seed == 1:
            raise AdaptationError("loss is nan at step 3")
        return 0.0, 1.0

    (trial,) = run(explode, [0.01])
    assert trial.state == TrialState.PRUNED  # of failed trials samplers know nothing
    assert trial.user_attrs["outcome"] == "not finite"
    assert trial.user_attrs["reason"] == "r1/0/1: loss is nan at step 3"
    assert trial.constraints["failed"] > 0  # else its one good instance would speak for it


def test_a_network_that_gives_no_number_is_not_finite_either(run: Run) -> None:
    (trial,) = run(lambda r: (float("nan"), 1.0), [0.01])
    assert trial.user_attrs["outcome"] == "not finite"
    assert "the loss on unseen drawings is nan" in trial.user_attrs["reason"]


def test_a_lack_of_memory_is_known_as_such(run: Run) -> None:
    def grab(r: Recipe) -> tuple[float, float]:
        if r.lr == 0.01:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 99 bytes")
        return 0.0, 1.0

    greedy, modest = run(grab, [0.01, 0.001])
    assert greedy.user_attrs["outcome"] == "out of memory"
    assert greedy.state == TrialState.PRUNED
    assert modest.state == TrialState.COMPLETE


def test_a_bug_fails_its_trial_and_leaves_its_traceback(run: Run) -> None:
    def stumble(r: Recipe) -> tuple[float, float]:
        if r.lr == 0.01:
            raise ZeroDivisionError("division by zero")
        return 0.0, 1.0

    failed, fine = run(stumble, [0.01, 0.001])
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["outcome"] == "bug"
    assert failed.user_attrs["reason"] == "ZeroDivisionError: division by zero"
    assert "in stumble" in failed.user_attrs["traceback"]
    assert fine.state == TrialState.COMPLETE


def test_bugs_in_a_row_end_the_worker(run: Run, config: StudyConfig) -> None:
    def stumble(r: Recipe) -> tuple[float, float]:
        if r.lr != 0.002:
            raise ZeroDivisionError
        return 0.0, 1.0

    with pytest.raises(WorkerFailedError, match="2 trials in a row failed, the last of bug"):
        run(stumble, [0.01, 0.002, 0.03, 0.04, 0.05])
    states = [t.state for t in load_study(open_storage(config.storage), "s").trials]
    fail, waiting = TrialState.FAIL, TrialState.WAITING
    assert states == [fail, TrialState.COMPLETE, fail, fail, waiting]


def test_an_interrupted_trial_is_queued_again_with_its_recipe(
    run: Run, config: StudyConfig
) -> None:
    def interrupt(r: Recipe) -> tuple[float, float]:
        if r.seed == 1:
            raise KeyboardInterrupt
        return 0.0, 1.0

    with pytest.raises(KeyboardInterrupt):
        run(interrupt, [0.03])
    (waiting,) = load_study(open_storage(config.storage), "s").trials
    assert waiting.state == TrialState.WAITING
    assert waiting.params == {"lr": 0.03}
    assert waiting.intermediate_values == {}
    assert list(waiting.user_attrs) == ["attempts"]


def test_each_call_stores_what_an_answer_costs_and_the_trial_their_mean(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs, budgets = iter([1.2, 1.4, 1.9]), []

    def measure(*_: Any, budget_s: float) -> Cost:
        budgets.append(budget_s)
        return Cost(next(costs), 1.0)

    monkeypatch.setattr(evaluate, "measure_cost", measure)
    seconds = iter([9.0, 0.5, 9.0])
    (trial,) = run(lambda r: (0.0, next(seconds)), [0.01])
    assert [m["cost"] for m in trial.user_attrs["instances"]] == [1.2, 1.4, 1.9]
    assert trial.user_attrs["cost"] == pytest.approx(1.5)
    assert budgets == pytest.approx([0.45, 0.025, 0.45])
    assert "cost of an answer over the limit" not in trial.constraints, "no limit is set"


def test_a_trial_whose_answers_cost_too_much_is_infeasible_and_never_best(
    run: Run, config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    object.__setattr__(config, "limits", Limits(cost=2.0))
    costs = iter([2.5, 2.0, 2.0, 2.0])
    monkeypatch.setattr(evaluate, "measure_cost", lambda *_, **__: Cost(next(costs), 1.0))
    dear, fine = run(lambda r: (10 * r.lr, 1.0), [0.001, 0.002])
    assert dear.state == TrialState.PRUNED
    assert dear.user_attrs["outcome"] == "infeasible"
    assert dear.user_attrs["reason"] == "an answer costs 2.50 of the plain network's; 2 are allowed"
    assert dear.constraints["cost of an answer over the limit"] == pytest.approx(0.5)
    assert len(dear.user_attrs["instances"]) == 1
    assert fine.user_attrs["outcome"] == "complete"
    best = best_trial(load_study(open_storage(config.storage), "s"))
    assert best is not None and best.number == fine.number


def test_values_at_odds_with_each_other_are_pruned_at_once(
    run: Run, config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.recipe import RecipeError

    def refuse(trial: optuna.Trial, *_: Any) -> Recipe:
        trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        raise RecipeError("lora_rank without lora_groups")

    monkeypatch.setattr(objective_module, "sample_recipe", refuse)
    (trial,) = run(lambda r: (0.0, 1.0), [0.01])
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs["reason"] == "impossible: lora_rank without lora_groups"
    assert trial.params == {"lr": 0.01}
