"""The stored result of `hpo.confirm`; in older databases also each of its calls."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import optuna
from pydantic import Field, ValidationError

from ..problem.base import InvalidValuesError, Method
from ..trial.record import Call, FailedCall, read_call
from ..trial.stored import Number, Remark, Stored, Whole, remarks_of

CONFIRMED_KEY = "confirmed"  # study attribute of the result
# Prefix of study attributes with one call of a confirmation each: in older databases, and where the
# table of calls can't be created.
CALLS_PREFIX = "confirm:"
BASELINE = "default"  # name of the default recipe among the candidates


class Left(StrEnum):
    """How a candidate ended in the confirmation's race."""

    FINALIST = "finalist"  # it was measured on every instance
    BEHIND = "behind"  # dropped, more than two standard errors behind the leader
    TIED = "tied"  # dropped in the worse half, but within two standard errors of the leader
    INFEASIBLE = "infeasible"  # a call was too long, or its loss was not finite


class Identity(Stored):
    """Identifies a recipe."""

    name: str  # "default", "best 3" (of the search), or a recipe's file
    trial: Whole | None = None  # number of the trial that ran it; None: no trial did
    digest: str

    @property
    def title(self) -> str:
        """The recipe's name for people."""
        return title(self.name, self.trial)

    @property
    def is_default(self) -> bool:
        """Whether it is the default recipe."""
        return self.name == BASELINE


class Difference(Identity):
    """The winner's loss minus another recipe's, with its 95 % interval."""

    difference: Number | None  # None if they share no instance
    standard_error: Number | None = None
    low: Number | None = None  # None if there is a single unit, so that the error is unknown
    high: Number | None = None

    @property
    def is_sure(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


class Comparisons(Stored):
    """The winner's differences to the other finalists."""

    default: Difference | None = None
    runner_up: Difference | None = None


class CandidateResult(Identity):
    """A row of the table: a candidate's loss on new instances, and in the search."""

    left: str  # a `Left`
    reason: str | None = None  # why it is infeasible
    rounds: Whole  # number of rounds that it survived
    calls: Whole = 0
    longest_call_s: Number
    loss: Number | None
    standard_error: Number | None = None
    difference: Number | None = None  # its loss minus the default recipe's
    difference_error: Number | None = None
    search_loss: Number | None = None
    search_difference: Number | None = None
    search_difference_error: Number | None = None
    cost: Number | None = None  # CPU time of an answer, over the plain network's
    measured: tuple[Call, ...] = ()  # its calls; older results do not have them


class Prediction(Stored):
    """Calls by wall clock, compared with the plan of the study's reference machine."""

    calls: Whole
    steps: Number  # median of made over planned
    least_steps: Number
    most_steps: Number
    seconds: Number  # median of taken over predicted


class AtSpeed(Stored):
    """The winner on the same instances at another speed of the reference machine."""

    speed: Number
    steps: tuple[Whole, Whole]  # fewest and most of its calls
    loss: Number | None  # None if a call failed
    standard_error: Number | None = None
    reason: str | None = None  # why there is no loss


class Confirmation(Identity):
    """The result of a confirmation: the winner, and how it won."""

    loss: Number
    standard_error: Number | None  # over units
    cost: Number | None = None
    recipe: dict[str, Any]
    comparisons: Comparisons = Field(alias="against")
    confidence: Number | None = None  # of the intervals
    units: Whole  # runes; instances if there is one rune only
    instances: Annotated[tuple[str, ...], Field(min_length=1)]  # labels
    table: tuple[CandidateResult, ...]
    rounds: tuple[Whole, ...] = ()  # number of instances after each round
    estimator: dict[str, Any] = Field(default_factory=dict)
    feasible_s: Number | None = None
    code: str | None = None  # digest
    clock: str | None = None  # "wall", or a reference machine and its speed; older ones: wall
    prediction: Prediction | None = None  # of calls by wall clock under a reference machine
    speeds: tuple[AtSpeed, ...] = ()

    def parsed_recipe(self, method: Method) -> dict[str, Any] | None:
        """All values; None if they are of a release with other fields."""
        try:
            return method.complete(self.recipe)
        except (InvalidValuesError, TypeError):
            return None


def read_confirmation(attrs: Mapping[str, Any]) -> Confirmation | Remark | None:
    """Read the result from a study's user attributes.

    Returns:
        None if there is no result, and a remark if it is not in this release's form.
    """
    stored = attrs.get(CONFIRMED_KEY)
    if stored is None:
        return None
    try:
        return Confirmation.model_validate(stored)
    except ValidationError as error:
        first = remarks_of(error)[0]
        return Remark(
            CONFIRMED_KEY,
            f"is not what this release stores ({str(first).strip()}); "
            "confirm again by python -m hpo.confirm",
        )


def write_confirmation(study: optuna.Study, confirmation: Confirmation) -> None:
    """Store the result, replacing an earlier one."""
    study.set_user_attr(CONFIRMED_KEY, confirmation.to_json())


def read_confirmed_call(
    attrs: Mapping[str, Any], digest: str, instance: str
) -> Call | FailedCall | Remark | None:
    """Read a recipe's call on an instance from a study's user attributes; None if there is none."""
    key = _call_key(digest, instance)
    return read_call(attrs[key], instance, key) if key in attrs else None


def write_confirmed_call(
    study: optuna.Study, digest: str, instance: str, call: Call | FailedCall
) -> None:
    """Store a call as an attribute of its own, so that two processes do not overwrite theirs."""
    stored = call.to_json()
    stored.pop("instance", None)  # it is part of the key
    study.set_user_attr(_call_key(digest, instance), stored)


def _call_key(digest: str, instance: str) -> str:
    return f"{CALLS_PREFIX}{digest}:{instance}"


def title(name: str, number: int | None) -> str:
    """A candidate's name with the number of its trial, if it has one."""
    return name if number is None else f"{name} (trial {number})"


def describe_difference(found: Difference) -> str:
    """A difference with its interval, and whether it shows which of the two is better."""
    if found.difference is None:
        return "unknown"
    if found.low is None or found.high is None:
        return f"{found.difference:+.4f}, of a single instance, so its error is not known"
    text = f"{found.difference:+.4f} (95 % interval {found.low:+.4f} to {found.high:+.4f})"
    return text if found.is_sure else f"{text}; not told apart"
