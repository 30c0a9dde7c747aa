"""Finetune's recipe as a method: its fields, its calls, its errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune.adapt import AdaptationError, Adapted, Progress
from finetune.data.runes import Split
from finetune.recipe import Recipe, RecipeError
from finetune.scoring.cost import Cost
from finetune.side_by_side import Task
from hpo.problem.base import (
    InvalidValuesError,
    NotFiniteError,
    OutOfTimeError,
    changed_values,
    digest_of,
)
from hpo.problem.instances import RuneInstance
from hpo.problem.measure import Measurement, measure
from hpo.problem.recipe_method import RecipeMethod
from hpo.problem.runes import RuneProblem
from hpo.problem.settings import Confirm, Estimator, Instances

METHOD = RecipeMethod()
VALUES = Recipe().to_dict()
COST = "finetune.scoring.cost.measure_cost"


class Offset(nn.Module):
    """Predicts a constant velocity: its loss is 1 + mean (x + constant)^2."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(constant))

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return self.constant.expand_as(x_t)


@pytest.fixture
def instances() -> list[RuneInstance]:
    blank = torch.zeros(2, 1, 28, 28)
    split = Split(blank, blank)
    return [RuneInstance(f"r{i}", 0, "unet_1", i, Offset(0.0), split) for i in range(3)]


Calls = Callable[..., list[Measurement]]


@pytest.fixture
def call(instances: list[RuneInstance], monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Measures a recipe on all instances; ``fake`` gives a call's constant and its seconds."""

    def call(fake: Callable[[Recipe], tuple[float, float]], limit_s: float = 12.0) -> Any:
        def adapt_together(tasks: Sequence[Task], on_step: Any) -> list[Adapted]:
            adapted = []
            for index, task in enumerate(tasks):
                constant, seconds = fake(task.recipe)
                on_step(index, Progress(1, 0.5, 1.0, seconds))
                adapted.append(Adapted(Offset(constant), 7, seconds, stopped=False))
            return adapted

        monkeypatch.setattr("finetune.side_by_side.adapt_together", adapt_together)
        asked = Instances(source="drawn")
        problem = RuneProblem(asked, Estimator(strata=10, replicates=4), Confirm())
        return measure(METHOD, problem, VALUES, instances, limit_s, lambda *_: None)

    return call


@given(
    name=st.sampled_from([f for f in VALUES if f not in ("lora_rank", "lora_groups")]),
    value=st.one_of(
        st.integers(-10, 10**7),
        st.floats(allow_nan=True),
        st.booleans(),
        st.sampled_from(["pen", "levels", "cosine", "auto", "?", ["up"], ["up", "?"], [], None]),
    ),
)
def test_a_field_allows_what_the_recipe_does(name: str, value: Any) -> None:
    if name == "train_groups" and value == []:
        return  # of which the recipe says no with another field's value
    try:
        Recipe.from_dict({name: value})
    except RecipeError as error:
        with pytest.raises(InvalidValuesError) as refused:
            METHOD.fields[name].check(name, value)
        assert str(refused.value) == str(error)
    else:
        METHOD.fields[name].check(name, value)


def test_values_are_the_recipes_and_so_is_their_digest() -> None:
    assert METHOD.complete({}) == VALUES
    assert {name: field.default for name, field in METHOD.fields.items()} == VALUES
    changed = METHOD.complete({"lr": 2e-3, "train_groups": ["output", "up"]})
    assert changed == Recipe(lr=2e-3, train_groups=("up", "output")).to_dict()
    assert changed_values(changed, METHOD.fields) == {"lr": 2e-3, "train_groups": ["up", "output"]}
    assert digest_of(changed) == Recipe.from_dict(changed).digest
    with pytest.raises(InvalidValuesError, match="did you mean 'steps'"):
        METHOD.complete({"stops": 3})
    with pytest.raises(InvalidValuesError, match="lora_rank is 0"):
        METHOD.complete({"lora_groups": ["up"]})


def test_each_call_has_its_instances_seed(call: Calls) -> None:
    seeds = []

    def fake(recipe: Recipe) -> tuple[float, float]:
        seeds.append(recipe.seed)
        return 0.0, 1.0

    assert [m.steps for m in call(fake)] == [7, 7, 7]
    assert seeds == [0, 1, 2]


def test_losses_are_of_the_networks_that_came_back(call: Calls) -> None:
    for measured in call(lambda recipe: (0.1 * recipe.seed, 1.0)):
        found, constant = measured.evaluation, measured.model.constant.item()  # type: ignore[attr-defined]
        # Blank drawings: E (e - constant)^2 = 1 + constant^2.
        assert found.loss == pytest.approx(1 + constant**2, abs=5 * found.standard_error)
        assert len(found.by_t) == 10


def test_the_seeds_of_the_noise_differ(call: Calls, instances: list[RuneInstance]) -> None:
    problem = RuneProblem(Instances(source="drawn"), Estimator(strata=4), Confirm())
    one, other = (problem.evaluate(Offset(0.0), instances[0], 1.0, seed).loss for seed in (0, 1))
    assert one != other
    assert problem.evaluate(Offset(0.0), instances[0], 1.0).loss == one
    resized = replace(instances[0], resize="nearest")
    assert resized.label == "r0/0 nearest"
    assert problem.evaluate(Offset(0.0), resized, 1.0).loss == one, "of one table"


def test_what_is_not_finite_is_told_with_the_instance(call: Calls) -> None:
    def explode(recipe: Recipe) -> tuple[float, float]:
        raise AdaptationError("loss is nan at step 3")

    with pytest.raises(NotFiniteError, match=r"^r0/0 and r1/0/1 and r2/0/2: loss is nan at step 3"):
        call(explode)
    with pytest.raises(NotFiniteError, match=r"^r1/0/1: the loss on unseen drawings is nan"):
        call(lambda recipe: (float("nan") if recipe.seed == 1 else 0.0, 1.0))


def test_a_call_at_the_limit_is_stopped(call: Calls) -> None:
    with pytest.raises(OutOfTimeError, match=r"after 12\.5 s, at step 1 \(50% of the schedule\)"):
        call(lambda recipe: (0.0, 12.5))


def test_the_cost_of_an_answer_takes_a_small_share_of_a_call(
    call: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs, budgets, seconds = iter([1.2, 1.4, 1.9]), [], iter([9.0, 0.5, 90.0])

    def measured(*_: Any, budget_s: float) -> Cost:
        budgets.append(budget_s)
        return Cost(next(costs), 1.0)

    monkeypatch.setattr(COST, measured)
    found = call(lambda recipe: (0.0, next(seconds)), limit_s=100.0)
    assert [m.evaluation.cost for m in found] == [1.2, 1.4, 1.9]
    assert budgets == pytest.approx([0.45, 0.025, 1.0])


def test_points_are_for_ten_drawings_of_the_futhorc() -> None:
    def graded(**asked: Any) -> str | None:
        instances = Instances.model_validate(asked)
        return RuneProblem(instances, Estimator(), Confirm(), Path("nowhere")).grade(0.119)

    assert graded(source="omniglot") == "2 points"
    assert graded(source="omniglot", train=9) is None
    assert graded(source="drawn") is None


def test_a_call_by_steps_makes_as_many_whatever_the_time(
    instances: list[RuneInstance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of equal numbers go side by side; each step is told with its instance."""
    ran: list[tuple[int, float, int]] = []

    def adapt_together(tasks: Sequence[Task], on_step: Any) -> list[Adapted]:
        ran.extend((t.recipe.steps, t.recipe.deadline_s, t.recipe.seed) for t in tasks)
        for index in range(len(tasks)):
            on_step(index, Progress(1, 0.5, 1.0, 1.0))
        return [Adapted(Offset(0.0), t.recipe.steps, 1.0, stopped=False) for t in tasks]

    monkeypatch.setattr("finetune.side_by_side.adapt_together", adapt_together)
    told: list[int] = []
    called = METHOD.call(VALUES, instances, lambda k, _: told.append(k), [5, 5, 5])
    assert ran == [(5, 1e6, 0), (5, 1e6, 1), (5, 1e6, 2)]
    assert [(c.steps, c.steps_wanted) for c in called] == [(5, 5)] * 3
    ran.clear()
    called = METHOD.call(VALUES, instances, lambda k, _: told.append(k), [5, 6, 5])
    assert [steps for steps, *_ in ran] == [5, 6, 5] == [c.steps for c in called]
    assert told == 2 * [0, 1, 2]
    ran.clear()
    METHOD.call(VALUES, instances, lambda *_: None)
    assert {(steps, deadline_s) for steps, deadline_s, _ in ran} == {(6000, 117.0)}
