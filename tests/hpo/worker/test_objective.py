"""Trials: what is stored, what is pruned, what is infeasible."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from hpo.problem.base import Evaluation, NotFiniteError
from hpo.pruners.registry import Pruner, make_pruner
from hpo.storage.open import load_study, open_storage
from hpo.study.config import Budget, Limits, Recovery, StudyConfig
from hpo.study.space import Parameter
from hpo.trial.ranking import best_trial
from hpo.trial.recipe import recipe_of
from hpo.trial.record import read_trial
from hpo.worker.display import Display
from hpo.worker.loop import Loop, WorkerFailedError
from hpo.worker.objective import Objective
from tests.cheap import CHEAP, Behaviour, CheapInstance, CheapMethod, CheapProblem
from tests.hpo.configs import make_config

Values = dict[str, Any]


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    return make_config(
        **CHEAP,
        storage=f"sqlite:///{tmp_path}/s.db",
        limit_s=12.0,
        margin_s=2.0,
        instances={"source": "drawn", "seeds": [0, 1, 2], "runes": ["r"]},
        pruner={"name": "median", "startup_trials": 2},
    )


class Run:
    """Runs trials with these learning rates, in this order.

    ``behave`` gives the level that the loss of a call grows with, and its seconds.
    """

    def __init__(self, config: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config, self._monkeypatch = config, monkeypatch

    def __call__(self, behave: Behaviour, lrs: list[float], together: int = 1) -> list[FrozenTrial]:
        config = self.config
        self._monkeypatch.setattr(CheapMethod, "behave", staticmethod(behave))
        storage = open_storage(config.storage, worker="me")
        storage.create_study("s", {}, [{"lr": lr} for lr in lrs])
        study = load_study(storage, "s", pruner=make_pruner(config.pruner))
        with Display("s", None, 0) as display:
            Loop(
                feasible_cost=config.limits.cost,
                study=study,
                storage=storage,
                run=Objective(config, config.load_problem(None), together=together),
                budget=Budget(trials=len(lrs)),
                recovery=Recovery(failures=2),
                display=display,
                feasible_s=config.feasible_s,
            ).work()
        return study.get_trials()


@pytest.fixture
def run(config: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(config, monkeypatch)


def by_lr(values: Values, instance: CheapInstance) -> tuple[float, float]:
    return 10 * values["lr"], 1.0


def test_the_value_is_the_mean_over_instances(run: Run) -> None:
    (trial,) = run(by_lr, [0.01])
    measured = trial.user_attrs["instances"]
    recipe = recipe_of(read_trial(trial), CheapMethod())
    assert [m["instance"] for m in measured] == ["r/0", "r/0/1", "r/0/2"]
    assert [m["steps"] for m in measured] == 3 * [recipe["steps"]]
    assert trial.value == pytest.approx(sum(m["loss"] for m in measured) / 3)
    errors = [m["standard_error"] for m in measured]
    assert trial.user_attrs["standard_error"] == pytest.approx(np.hypot.reduce(errors) / 3)
    assert [m["per_t_bin"][-1] for m in measured] == [None] * 3, "no time fell into it"
    assert [len(m["curve"]) for m in measured] == [9] * 3
    assert list(trial.intermediate_values) == [1, 2, 3]
    assert recipe == CheapMethod().complete({"lr": 0.01})
    assert trial.user_attrs["machine"] == {"device": "cpu", "threads": 1}
    assert trial.user_attrs["outcome"] == "complete"
    assert trial.user_attrs["worker"] == "me"
    json.dumps(trial.user_attrs)


def test_a_weak_trial_is_pruned_before_its_last_instance(run: Run) -> None:
    *complete, weak = run(by_lr, [0.001, 0.002, 0.09])
    assert weak.state == TrialState.PRUNED
    assert len(weak.user_attrs["instances"]) == 1
    assert weak.user_attrs["outcome"] == "pruned"
    assert "weak after 1 of 3" in weak.user_attrs["reason"]
    # What all three would give, by the complete trials: the noise of each is its own.
    losses = np.array([[m["loss"] for m in t.user_attrs["instances"]] for t in complete])
    difficulty = np.exp(np.log(losses).mean(0))
    expected = weak.intermediate_values[1] * difficulty.mean() / difficulty[0]
    assert weak.value == pytest.approx(expected)
    assert weak.constraints["seconds over the limit"] == pytest.approx(-9.0)


def test_a_trial_that_is_raced_out_gets_the_loss_that_it_probably_has(
    run: Run, config: StudyConfig
) -> None:
    object.__setattr__(config, "pruner", Pruner(name="racing", alpha=0.2))
    lrs = [0.001, 0.002, 0.0015, 0.0012, 0.09]
    weak = run(lambda v, i: (10 * v["lr"] * (1 + 0.1 * i.seed), 1.0), lrs)[-1]
    assert weak.user_attrs["outcome"] == "pruned"
    seen = weak.user_attrs["instances"]
    assert 0 < len(seen) < 3
    assert f"weak after {len(seen)} of 3 instances: 1." in weak.user_attrs["reason"]
    # Later instances are harder, by a factor that the earlier trials' losses tell.
    assert weak.value != weak.intermediate_values[len(seen)]
    assert weak.value == pytest.approx(seen[0]["loss"], rel=0.05)


def test_calls_side_by_side_tell_what_they_tell_alone(run: Run, config: StudyConfig) -> None:
    def fake(values: Values, instance: CheapInstance) -> tuple[float, float]:
        return 10 * values["lr"] * (1 + instance.seed), 1.0 + instance.seed

    (alone,) = run(fake, [0.01])
    object.__setattr__(config, "storage", config.storage.replace(".db", "-2.db"))
    (beside,) = run(fake, [0.01], together=2)
    assert [m["instance"] for m in beside.user_attrs["instances"]] == ["r/0", "r/0/1", "r/0/2"]
    for trial in (alone, beside):
        assert trial.user_attrs["cost"] == 1.5
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
    run(by_lr, [0.001], together=2)
    assert list(dict.fromkeys(titles)) == ["trial 0, r/0 + 1 more (2/3)", "trial 0, r/0/2 (3/3)"]


def test_calls_side_by_side_are_judged_together(run: Run) -> None:
    weak = run(by_lr, [0.001, 0.002, 0.09], together=2)[2]
    assert weak.user_attrs["outcome"] == "pruned"
    assert list(weak.intermediate_values) == [1, 2]
    assert "weak after 2 of 3" in weak.user_attrs["reason"]


def test_a_stop_names_all_that_went_side_by_side(run: Run) -> None:
    (trial,) = run(lambda *_: (0.0, 12.5), [0.01], together=3)
    assert "stopped on r/0 and r/0/1 and r/0/2 after 12.5 s" in trial.user_attrs["reason"]


def test_a_call_near_the_limit_is_infeasible_and_never_best(run: Run, config: StudyConfig) -> None:
    good, _ = run(lambda v, _: (10 * v["lr"], 11.0 if v["lr"] == 0.001 else 9.0), [0.001, 0.002])
    assert good.state == TrialState.PRUNED
    assert good.user_attrs["outcome"] == "infeasible"
    assert "took 11.0 s; 10 are allowed" in good.user_attrs["reason"]
    assert good.constraints["seconds over the limit"] == pytest.approx(1.0)
    assert good.system_attrs["constraints"] == [pytest.approx(1.0)]  # where the dashboard looks
    best = best_trial(load_study(open_storage(config.storage), "s"))
    assert best is not None
    assert best.params["lr"] == 0.002


def test_a_call_at_the_limit_is_stopped(run: Run) -> None:
    (trial,) = run(lambda *_: (0.0, 12.5), [0.01])
    assert trial.user_attrs["outcome"] == "out of time"
    assert trial.user_attrs["reason"] == (
        "stopped on r/0 after 12.5 s, at step 1 (50% of the schedule); the limit is 12 s"
    )
    assert trial.constraints["failed"] > 0
    assert "instances" not in trial.user_attrs


def test_a_loss_that_is_not_finite_ends_the_trial_and_samplers_learn_of_it(run: Run) -> None:
    def explode(values: Values, instance: CheapInstance) -> tuple[float, float]:
        if instance.seed == 1:
            raise NotFiniteError("loss is nan at step 3")
        return 0.0, 1.0

    (trial,) = run(explode, [0.01])
    assert trial.state == TrialState.PRUNED  # of failed trials samplers know nothing
    assert trial.user_attrs["outcome"] == "not finite"
    assert trial.user_attrs["reason"] == "r/0/1: loss is nan at step 3"
    assert trial.constraints["failed"] > 0  # else its one good instance would speak for it


def test_a_model_that_gives_no_number_is_not_finite_either(run: Run) -> None:
    (trial,) = run(lambda *_: (float("nan"), 1.0), [0.01])
    assert trial.user_attrs["outcome"] == "not finite"
    assert trial.user_attrs["reason"] == "r/0: the loss is nan"


def test_a_lack_of_memory_is_known_as_such(run: Run) -> None:
    def grab(values: Values, instance: CheapInstance) -> tuple[float, float]:
        if values["lr"] == 0.01:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 99 bytes")
        return 0.0, 1.0

    greedy, modest = run(grab, [0.01, 0.001])
    assert greedy.user_attrs["outcome"] == "out of memory"
    assert greedy.state == TrialState.PRUNED
    assert modest.state == TrialState.COMPLETE


def test_a_bug_fails_its_trial_and_leaves_its_traceback(run: Run) -> None:
    def stumble(values: Values, instance: CheapInstance) -> tuple[float, float]:
        if values["lr"] == 0.01:
            raise ZeroDivisionError("division by zero")
        return 0.0, 1.0

    failed, fine = run(stumble, [0.01, 0.001])
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["outcome"] == "bug"
    assert failed.user_attrs["reason"] == "ZeroDivisionError: division by zero"
    assert "in stumble" in failed.user_attrs["traceback"]
    assert fine.state == TrialState.COMPLETE


def test_bugs_in_a_row_end_the_worker(run: Run, config: StudyConfig) -> None:
    def stumble(values: Values, instance: CheapInstance) -> tuple[float, float]:
        if values["lr"] != 0.002:
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
    def interrupt(values: Values, instance: CheapInstance) -> tuple[float, float]:
        if instance.seed == 1:
            raise KeyboardInterrupt
        return 0.0, 1.0

    with pytest.raises(KeyboardInterrupt):
        run(interrupt, [0.03])
    (waiting,) = load_study(open_storage(config.storage), "s").trials
    assert waiting.state == TrialState.WAITING
    assert waiting.params == {"lr": 0.03}
    assert waiting.intermediate_values == {}
    assert list(waiting.user_attrs) == ["attempts"]


def costing(monkeypatch: pytest.MonkeyPatch, *costs: float) -> None:
    """Successive calls return what costs so much an answer."""
    left, evaluate = iter(costs), CheapProblem.evaluate

    def costly(self: CheapProblem, *arguments: Any) -> Evaluation:
        return replace(evaluate(self, *arguments), cost=next(left))

    monkeypatch.setattr(CheapProblem, "evaluate", costly)


def test_each_call_stores_what_an_answer_costs_and_the_trial_their_mean(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    costing(monkeypatch, 1.2, 1.4, 1.9)
    (trial,) = run(by_lr, [0.01])
    assert [m["cost"] for m in trial.user_attrs["instances"]] == [1.2, 1.4, 1.9]
    assert trial.user_attrs["cost"] == pytest.approx(1.5)
    assert "cost of an answer over the limit" not in trial.constraints, "no limit is set"


def test_a_trial_whose_answers_cost_too_much_is_infeasible_and_never_best(
    run: Run, config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    object.__setattr__(config, "limits", Limits(cost=2.0))
    costing(monkeypatch, 2.5, 2.0, 2.0, 2.0)
    dear, fine = run(by_lr, [0.001, 0.002])
    assert dear.state == TrialState.PRUNED
    assert dear.user_attrs["outcome"] == "infeasible"
    assert dear.user_attrs["reason"] == "an answer costs 2.50 of the plain network's; 2 are allowed"
    assert dear.constraints["cost of an answer over the limit"] == pytest.approx(0.5)
    assert len(dear.user_attrs["instances"]) == 1
    assert fine.user_attrs["outcome"] == "complete"
    best = best_trial(load_study(open_storage(config.storage), "s"))
    assert best is not None and best.number == fine.number


def test_values_at_odds_with_each_other_are_pruned_at_once(run: Run, config: StudyConfig) -> None:
    table = {"type": "choice", "choices": {"none": []}}
    space = TypeAdapter(dict[str, Parameter]).validate_python({"parts": table})
    object.__setattr__(config, "space", {**config.space, **space})
    (trial,) = run(by_lr, [0.01])
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs["reason"] == "impossible: parts is empty; name some of a, b, c"
    assert trial.params["lr"] == 0.01
    assert "instances" not in trial.user_attrs
