"""The search space of a study file, and how a trial's parameters become a `Recipe`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import optuna
from pydantic import BaseModel, ConfigDict, Field, model_validator

from finetune.recipe import Recipe, RecipeError

Scalar = str | int | float | bool
RECIPE_FIELDS = {f.name: f for f in dataclasses.fields(Recipe)}


class _Base(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    # The parameter exists only in trials in which these earlier ones have these values.
    when: dict[str, Scalar] = {}


class FloatParameter(_Base):
    type: Literal["float"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> FloatParameter:
        _check_range(self.low, self.high, self.log)
        return self

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def values(self) -> tuple[Any, ...]:
        """Values whose being allowed means that all are."""
        return (self.low, self.high)

    def allows(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high


class IntParameter(_Base):
    type: Literal["int"]
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> IntParameter:
        _check_range(self.low, self.high, self.log)
        return self

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        return trial.suggest_int(name, self.low, self.high, log=self.log)

    def values(self) -> tuple[Any, ...]:
        return (self.low, self.high)

    def allows(self, value: Any) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high


class ChoiceParameter(_Base):
    """One of a list of values, or of a table that gives each value (a list, say) a name."""

    type: Literal["choice"]
    choices: Annotated[list[Scalar], Field(min_length=1)] | dict[str, Any]

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        chosen = trial.suggest_categorical(name, list(self.choices))
        return self.choices[chosen] if isinstance(self.choices, dict) else chosen  # type: ignore[index]

    def values(self) -> tuple[Any, ...]:
        named = isinstance(self.choices, dict)
        return tuple(self.choices.values()) if named else tuple(self.choices)  # type: ignore[union-attr]

    def allows(self, value: Any) -> bool:
        return value in list(self.choices)


class SwitchParameter(_Base):
    """True or false; no field of a recipe, but what others' ``when`` may ask for."""

    type: Literal["switch"]

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        return trial.suggest_categorical(name, [False, True])

    def values(self) -> tuple[Any, ...]:
        return ()

    def allows(self, value: Any) -> bool:
        return isinstance(value, bool)


Parameter = Annotated[
    FloatParameter | IntParameter | ChoiceParameter | SwitchParameter, Field(discriminator="type")
]


def check_space(
    space: Mapping[str, Parameter],
    fixed: Mapping[str, Any],
    start: Sequence[Mapping[str, Any]],
) -> None:
    """Every value that the space can give must be a valid recipe's.

    Raises:
        ValueError: naming the key, what was found and what is allowed.
    """
    seen: list[str] = []
    for name, parameter in space.items():
        where = f"space.{name}"
        if name in fixed:
            raise ValueError(f"{name} is both in [fixed] and in [space]; keep one")
        is_field = name in RECIPE_FIELDS
        if is_field == isinstance(parameter, SwitchParameter):
            kind = "is a recipe's field" if is_field else "is no field of a recipe"
            raise ValueError(f"{where} {kind}; fields are {', '.join(RECIPE_FIELDS)}")
        for condition, value in parameter.when.items():
            if condition not in seen:
                raise ValueError(f"{where}.when names {condition!r}; name an earlier parameter")
            if not space[condition].allows(value):
                raise ValueError(f"{where}.when: {condition} can't be {value!r}")
        for value in parameter.values():
            _check_value(name, value)
        seen.append(name)
    for i, parameters in enumerate(start):
        for name, value in parameters.items():
            if name not in space:
                raise ValueError(f"start.{i} names {name!r}; [space] has {', '.join(space)}")
            if not space[name].allows(value):
                raise ValueError(f"start.{i}.{name} is {value!r}, outside its space")


def sample_recipe(
    trial: optuna.Trial, space: Mapping[str, Parameter], fixed: Mapping[str, Any]
) -> Recipe:
    """Ask the trial for every parameter that exists in it.

    Raises:
        RecipeError: the parameters are at odds with each other.
    """
    values: dict[str, Any] = {}
    for name, parameter in space.items():
        if all(values.get(other) == wanted for other, wanted in parameter.when.items()):
            values[name] = parameter.suggest(trial, name)
    fields = {name: value for name, value in values.items() if name in RECIPE_FIELDS}
    return Recipe.from_dict({**fixed, **fields})


def _check_range(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"low is {low:g} and high is {high:g}; write low <= high")
    if log and low <= 0:
        raise ValueError(f"low is {low:g} on a log scale; write more than 0")


def _check_value(name: str, value: Any) -> None:
    needs_lora: dict[str, Any] = {}
    if name == "lora_rank" and value:
        needs_lora = {"lora_groups": ["middle"]}
    elif name == "lora_groups" and value:
        needs_lora = {"lora_rank": 1}
    try:
        Recipe.from_dict({name: value, **needs_lora})
    except RecipeError as error:
        raise ValueError(f"space.{name}: {error}") from error
