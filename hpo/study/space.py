"""The search space of a study file, and how a trial's parameters become values of its method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..problem.base import InvalidValuesError, Method
from ..settings import Finite

Scalar = str | int | float | bool
# Optuna stores parameters as floats, which are exact for whole numbers up to here.
_Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]


class _Base(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    when: dict[str, Scalar] = {}
    """The parameter exists only in trials in which these earlier ones have these values."""


class FloatParameter(_Base):
    type: Literal["float"]
    low: Finite
    """The smallest value."""
    high: Finite
    """The largest."""
    log: bool = False
    """Whether each power of ten is as likely as the next."""

    @model_validator(mode="after")
    def _ordered(self) -> FloatParameter:
        _check_range(self.low, self.high, self.log)
        return self

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def distribution(self) -> BaseDistribution:
        """Optuna's distribution of the parameter, as in `suggest`."""
        return FloatDistribution(self.low, self.high, log=self.log)

    def parameter(self, value: Any) -> Any:
        """The parameter's value that gives the field this value; None if there is none."""
        return value if self.allows(value) else None

    def values(self) -> tuple[Any, ...]:
        """Values to check: if these are allowed for the field, all are."""
        return (self.low, self.high)

    def allows(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high


class IntParameter(_Base):
    type: Literal["int"]
    low: _Whole
    """The smallest value."""
    high: _Whole
    """The largest."""
    log: bool = False
    """Whether each power of ten is as likely as the next."""

    @model_validator(mode="after")
    def _ordered(self) -> IntParameter:
        _check_range(self.low, self.high, self.log)
        return self

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        return trial.suggest_int(name, self.low, self.high, log=self.log)

    def distribution(self) -> BaseDistribution:
        return IntDistribution(self.low, self.high, log=self.log)

    def parameter(self, value: Any) -> Any:
        return value if self.allows(value) else None

    def values(self) -> tuple[Any, ...]:
        return (self.low, self.high)

    def allows(self, value: Any) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high


class ChoiceParameter(_Base):
    """One of a list of values, or of a table that names values such as lists."""

    type: Literal["choice"]
    choices: Annotated[list[Scalar], Field(min_length=1)] | dict[str, Any]
    """A list of values, or a table that gives each value a name."""

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        chosen = trial.suggest_categorical(name, list(self.choices))
        return self.choices[chosen] if isinstance(self.choices, dict) else chosen  # type: ignore[index]

    def distribution(self) -> BaseDistribution:
        return CategoricalDistribution(list(self.choices))

    def parameter(self, value: Any) -> Any:
        named = self.choices if isinstance(self.choices, dict) else {c: c for c in self.choices}
        return next((name for name, choice in named.items() if _is_same(choice, value)), None)

    def values(self) -> tuple[Any, ...]:
        named = isinstance(self.choices, dict)
        return tuple(self.choices.values()) if named else tuple(self.choices)  # type: ignore[union-attr]

    def allows(self, value: Any) -> bool:
        return value in list(self.choices)


class SwitchParameter(_Base):
    """True or false. It may set a field, or only be a condition for other parameters' ``when``."""

    type: Literal["switch"]

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        return trial.suggest_categorical(name, [False, True])

    def distribution(self) -> BaseDistribution:
        return CategoricalDistribution([False, True])

    def parameter(self, value: Any) -> Any:
        return value if self.allows(value) else None

    def values(self) -> tuple[Any, ...]:
        return (False, True)

    def allows(self, value: Any) -> bool:
        return isinstance(value, bool)


Parameter = Annotated[
    FloatParameter | IntParameter | ChoiceParameter | SwitchParameter, Field(discriminator="type")
]


def check_space(
    space: Mapping[str, Parameter],
    fixed: Mapping[str, Any],
    start: Sequence[Mapping[str, Any]],
    method: Method,
) -> None:
    """Check that the method's fields may have all values that the space can give.

    Raises:
        ValueError: names the key, what was found and what is allowed.
    """
    for name in (*fixed, *space):
        if name in method.fields and (key := method.fields[name].set_by):
            raise ValueError(f"{name} is not for a study to choose here; write {key}")
    try:
        method.complete(fixed)
    except InvalidValuesError as error:
        raise ValueError(f"[fixed] {error}") from error
    seen: list[str] = []
    for name, parameter in space.items():
        where = f"space.{name}"
        if name in fixed:
            raise ValueError(f"{name} is both in [fixed] and in [space]; keep one")
        _check_parameter(where, name, parameter, method)
        for condition, value in parameter.when.items():
            if condition not in seen:
                raise ValueError(f"{where}.when names {condition!r}; name an earlier parameter")
            if not space[condition].allows(value):
                raise ValueError(f"{where}.when: {condition} can't be {value!r}")
        seen.append(name)
    for i, parameters in enumerate(start):
        check_parameters(f"start.{i}", parameters, space)


def check_parameters(
    where: str, parameters: Mapping[str, Any], space: Mapping[str, Parameter]
) -> None:
    """Raise ValueError unless the space has these parameters and allows their values."""
    for name, value in parameters.items():
        if name not in space:
            raise ValueError(f"{where} names {name!r}; [space] has {', '.join(space)}")
        if not space[name].allows(value):
            raise ValueError(f"{where}.{name} is {value!r}, outside its space")


def check_queued(parameters: Mapping[str, Any], space: Mapping[str, Parameter]) -> None:
    """Check that the space can sample the parameters of a trial that somebody queues.

    Raises:
        ValueError: names the parameter, what was found and what is allowed.
    """
    for name, value in parameters.items():
        if name not in space:
            near = get_close_matches(name, space, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name} is no parameter{meant}; [space] has {', '.join(space)}")
        parameter = space[name]
        if not parameter.allows(value):
            raise ValueError(f"{name} is {value!r}; write {allowed_values(parameter)}")
        for other, wanted in parameter.when.items():
            if other in parameters and parameters[other] != wanted:
                raise ValueError(
                    f"{name} exists only where {other} is {wanted!r}, and {other} is "
                    f"{parameters[other]!r}; leave one of them out"
                )


def allowed_values(parameter: Parameter) -> str:
    """The values that a parameter may have, for people."""
    if isinstance(parameter, ChoiceParameter):
        return "one of " + ", ".join(map(str, parameter.choices))
    if isinstance(parameter, SwitchParameter):
        return "true or false"
    kind = "a whole number" if isinstance(parameter, IntParameter) else "a number"
    return f"{kind} from {parameter.low:g} to {parameter.high:g}"


def read_parameter(text: str, name: str, space: Mapping[str, Parameter]) -> Any:
    """Parse the value that a person wrote for a parameter; the text itself if it does not parse."""
    parameter = space.get(name)
    if isinstance(parameter, ChoiceParameter):
        said = {str(choice).lower(): choice for choice in parameter.choices}
        return said.get(text.lower(), text)
    if isinstance(parameter, SwitchParameter):
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        number = float(text)
    except ValueError:
        return text
    whole = isinstance(parameter, IntParameter) and number == int(number)
    return int(number) if whole else number


def sample_values(
    trial: optuna.Trial, space: Mapping[str, Parameter], fixed: Mapping[str, Any], method: Method
) -> dict[str, Any]:
    """Sample the trial's active parameters; returns all of the method's values.

    Raises:
        InvalidValuesError: the values contradict each other.
    """
    values: dict[str, Any] = {}
    for name, parameter in space.items():
        if all(values.get(other) == wanted for other, wanted in parameter.when.items()):
            values[name] = parameter.suggest(trial, name)
    chosen = {name: value for name, value in values.items() if name in method.fields}
    return method.complete({**fixed, **chosen})


def random_values(
    space: Mapping[str, Parameter], fixed: Mapping[str, Any], method: Method, n: int, seed: int
) -> list[dict[str, Any]]:
    """Draw ``n`` complete recipes at random from a space; a recipe whose values contradict each
    other is drawn again."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    found: list[dict[str, Any]] = []
    while len(found) < n:
        try:
            found.append(sample_values(study.ask(), space, fixed, method))
        except InvalidValuesError:
            continue
    return found


def _is_same(one: Any, other: Any) -> bool:
    # In Python, True equals 1.
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _check_range(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"low is {low:g} and high is {high:g}; write low <= high")
    if log and low <= 0:
        raise ValueError(f"low is {low:g} on a log scale; write more than 0")


def _check_parameter(where: str, name: str, parameter: Parameter, method: Method) -> None:
    field = method.fields.get(name)
    if field is None:
        if not isinstance(parameter, SwitchParameter):
            known = [n for n, f in method.fields.items() if not f.set_by]
            near = get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"{where} is no field of the method{meant}; fields are {', '.join(known)}"
            )
        return
    if isinstance(parameter, SwitchParameter) and field.kind != "bool":
        raise ValueError(f'{where} is a switch, and {name} is a field; write another "type"')
    if isinstance(parameter, FloatParameter) and field.kind == "int":
        raise ValueError(f'{where} is of type "float", and {name} is whole; write type = "int"')
    for value in parameter.values():
        try:
            field.check(name, value)
        except InvalidValuesError as error:
            raise ValueError(f"{where}: {error}") from error
