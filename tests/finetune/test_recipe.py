"""Recipe: what it accepts, what it refuses and in which words, and its way through JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.recipe import GROUPS, LORA_GROUPS, Recipe, RecipeError

FIELDS = {f.name: f for f in dataclasses.fields(Recipe)}
NUMBERS = [name for name, f in FIELDS.items() if "range" in f.metadata]
WHOLE = [name for name in NUMBERS if isinstance(FIELDS[name].default, int)]
CHOICES = [name for name, f in FIELDS.items() if "choices" in f.metadata]
SUBSETS = [name for name, f in FIELDS.items() if "subset" in f.metadata]


def values_of(name: str) -> st.SearchStrategy[Any]:
    """Every value that the field's metadata allows."""
    metadata = FIELDS[name].metadata
    if "choices" in metadata:
        return st.sampled_from(metadata["choices"])
    if "subset" in metadata:
        return st.lists(st.sampled_from(metadata["subset"]), unique=True)
    low, high = metadata["range"]
    return st.integers(low, high) if name in WHOLE else st.floats(low, high)


@st.composite
def recipe_values(draw: st.DrawFn) -> dict[str, Any]:
    """Values of every field, at one with each other."""
    values = {name: draw(values_of(name)) for name in FIELDS}
    if not values["lora_groups"] or not values["lora_rank"]:
        values["lora_groups"], values["lora_rank"] = [], 0
        values["train_groups"] = values["train_groups"] or [draw(st.sampled_from(GROUPS))]
    return values


def recipe_with(name: str, value: Any) -> Recipe:
    """A recipe with this one value, and what the consistency of LoRA asks for beside it."""
    values: dict[str, Any] = {name: value}
    if value and name == "lora_rank":
        values["lora_groups"] = ["up"]
    elif value and name == "lora_groups":
        values["lora_rank"] = 4
    return Recipe.from_dict(values)


json_scalars: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(GROUPS)
)
json_values: st.SearchStrategy[Any] = (
    json_scalars | st.lists(json_scalars, max_size=3) | st.just({})
)


@given(values=recipe_values())
def test_json_round_trip(values: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(values)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert hash(Recipe.from_json(recipe.to_json())) == hash(recipe)
    assert {k: sorted(v) if isinstance(v, list) else v for k, v in recipe.to_dict().items()} == {
        k: sorted(v) if isinstance(v, list) else v for k, v in values.items()
    }


def test_left_out_fields_have_their_defaults() -> None:
    assert Recipe.from_json("{}") == Recipe()
    assert Recipe.from_json('{"lr": 0.5}') == dataclasses.replace(Recipe(), lr=0.5)


@given(name=st.sampled_from(list(FIELDS)), value=json_values)
def test_any_value_is_taken_or_refused_by_name(name: str, value: Any) -> None:
    try:
        recipe = recipe_with(name, value)
    except RecipeError as error:
        assert name in str(error)
    else:
        assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    "text", ["", "{", "lr: 1", "[]", "3", "null", '"lr"', '{"lr": ' + "9" * 5000 + "}"]
)
def test_text_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="recipe is"):
        Recipe.from_json(text)


@pytest.mark.parametrize("name", FIELDS)
def test_misspelt_fields_get_the_near_name(name: str) -> None:
    typo = name + "s" if name + "s" not in FIELDS else name + "z"
    with pytest.raises(RecipeError, match=f"unknown recipe field '{typo}'; did you mean '{name}'"):
        Recipe.from_dict({typo: 1})


def test_strange_fields_get_all_the_names() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({"qqqqqq": 1})
    assert all(name in str(caught.value) for name in ["qqqqqq", *FIELDS])


def test_every_field_says_what_it_means() -> None:
    for name, f in FIELDS.items():
        assert f.metadata["meaning"].strip(), name
        kinds = {"range", "choices", "subset"} & set(f.metadata)
        assert len(kinds) == 1, name
        if "range" in kinds:
            assert f.metadata["unit"].strip(), name


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_reach_both_ends_of_their_range_and_no_further(name: str) -> None:
    low, high = FIELDS[name].metadata["range"]
    for end, way in ((low, -1), (high, 1)):
        assert getattr(recipe_with(name, end), name) == end
        beyond = end + way if name in WHOLE else math.nextafter(end, way * math.inf)
        with pytest.raises(RecipeError, match=rf"^{name} is .*; write a value in \["):
            recipe_with(name, beyond)


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_refused_by_name(name: str) -> None:
    wrong: list[Any] = [math.nan, math.inf, -math.inf, "1", True, None, [1], {}]
    for value in wrong:
        with pytest.raises(RecipeError, match=f"^{name} is "):
            recipe_with(name, value)


@pytest.mark.parametrize("name", ["steps", "lr"])
@pytest.mark.parametrize("sign", [1, -1])
def test_integers_beyond_every_float_are_refused_by_name(name: str, sign: int) -> None:
    with pytest.raises(RecipeError, match=f"^{name} is "):
        recipe_with(name, sign * 10**400)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_fields_take_2_0_but_no_fraction(name: str) -> None:
    value = getattr(recipe_with(name, 2.0), name)
    assert value == 2 and type(value) is int
    for fraction in (1.5, 2.5):
        with pytest.raises(RecipeError, match=f"^{name} is {fraction}; write a whole number in"):
            recipe_with(name, fraction)


def test_other_numbers_become_floats() -> None:
    recipe = Recipe(lr=1, clip_norm=2, deadline_s=100)
    assert [type(value) for value in (recipe.lr, recipe.clip_norm, recipe.deadline_s)] == [
        float
    ] * 3
    assert recipe == Recipe(lr=1.0, clip_norm=2.0, deadline_s=100.0)


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_those_listed(name: str) -> None:
    choices = FIELDS[name].metadata["choices"]
    for choice in choices:
        assert getattr(recipe_with(name, choice), name) == choice
    for wrong in ("neither", "", None, 0, [choices[0]], choices[0].upper()):
        with pytest.raises(RecipeError, match=rf"^{name} is .*; write one of {choices[0]}"):
            recipe_with(name, wrong)


@pytest.mark.parametrize("name", SUBSETS)
def test_subsets_have_one_order_and_no_repeats(name: str) -> None:
    allowed = FIELDS[name].metadata["subset"]
    shuffled = recipe_with(name, [allowed[2], allowed[0], allowed[2]])
    assert getattr(shuffled, name) == (allowed[0], allowed[2])
    assert shuffled == recipe_with(name, (allowed[0], allowed[2]))
    for wrong in ("up", ["nowhere"], [allowed[0], None], [[allowed[0]]], None, {"up": 1}, 3):
        with pytest.raises(RecipeError, match=f"^{name} is .*; write a list of some of"):
            recipe_with(name, wrong)


def test_lora_rank_and_groups_go_together() -> None:
    with pytest.raises(RecipeError, match=r"lora_groups is .* but lora_rank is 0"):
        Recipe(lora_groups=("up",))
    with pytest.raises(RecipeError, match="lora_rank is 4 but lora_groups is empty"):
        Recipe(lora_rank=4)
    assert Recipe(lora_rank=4, lora_groups=LORA_GROUPS).lora_groups == LORA_GROUPS


def test_something_must_train() -> None:
    with pytest.raises(RecipeError, match="train_groups is empty"):
        Recipe(train_groups=())
    assert Recipe(train_groups=(), lora_rank=1, lora_groups=("up",)).train_groups == ()


def test_recipes_are_frozen_and_checked_again_when_changed() -> None:
    recipe = Recipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.lr = 0.1  # type: ignore[misc]
    with pytest.raises(RecipeError, match="lr is 0"):
        dataclasses.replace(recipe, lr=0)


def test_json_is_plain_and_complete() -> None:
    values = json.loads(Recipe().to_json())
    assert list(values) == list(FIELDS)
    assert values["train_groups"] == list(GROUPS)
