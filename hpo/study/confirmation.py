"""What `hpo.confirm` stores with a study: its result, and in older databases each of its calls."""

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
# Of study attributes that hold a call of a confirmation each: in older databases, and where the
# table of calls can't be made.
CALLS_PREFIX = "confirm:"
BASELINE = "default"  # the default recipe's name among those that are confirmed


class Left(StrEnum):
    """How a candidate left the race."""

    FINALIST = "finalist"  # it did not: it was measured on every instance
    BEHIND = "behind"  # more than two standard errors behind the leader
    TIED = "tied"  # in the worse half, though within two standard errors of the leader
    INFEASIBLE = "infeasible"  # a call was too long, or its loss not finite


class Identity(Stored):
    """Which recipe it is."""

    name: str  # "default", "best 3" (of the search), or a recipe's file
    trial: Whole | None = None  # number of the trial that ran it; None: no trial did
    digest: str

    @property
    def title(self) -> str:
        """For people."""
        return title(self.name, self.trial)

    @property
    def is_default(self) -> bool:
        """Whether it is the default recipe."""
        return self.name == BASELINE


class Difference(Identity):
    """The winner's loss minus that of this other recipe, with its 95 % interval."""

    difference: Number | None  # None: they share no instance
    standard_error: Number | None = None
    low: Number | None = None  # None: of a single unit, so its error is not known
    high: Number | None = None

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


class Comparisons(Stored):
    """The winner's differences; none to itself."""

    default: Difference | None = None
    runner_up: Difference | None = None


class CandidateResult(Identity):
    """A row of the table: a candidate on new instances, and in the search."""

    left: str  # a `Left`
    reason: str | None = None  # why it is infeasible
    rounds: Whole  # that it survived
    calls: Whole = 0
    longest_call_s: Number
    loss: Number | None
    standard_error: Number | None = None
    difference: Number | None = None  # to the default recipe's loss
    difference_error: Number | None = None
    search_loss: Number | None = None
    search_difference: Number | None = None
    search_difference_error: Number | None = None
    cost: Number | None = None  # CPU time of an answer, over the plain network's
    measured: tuple[Call, ...] = ()  # its calls; older results have none


class Confirmation(Identity):
    """The winner, and how it won."""

    loss: Number
    standard_error: Number | None  # over units
    cost: Number | None = None
    recipe: dict[str, Any]
    comparisons: Comparisons = Field(alias="against")
    confidence: Number | None = None  # of the intervals
    units: Whole  # runes; instances if there is one rune only
    instances: Annotated[tuple[str, ...], Field(min_length=1)]  # labels
    table: tuple[CandidateResult, ...]
    rounds: tuple[Whole, ...] = ()  # how many instances after each
    estimator: dict[str, Any] = Field(default_factory=dict)
    feasible_s: Number | None = None
    code: str | None = None  # digest

    def parsed_recipe(self, method: Method) -> dict[str, Any] | None:
        """All values; None: they are of a release with other fields."""
        try:
            return method.complete(self.recipe)
        except (InvalidValuesError, TypeError):
            return None


def read_confirmation(attrs: Mapping[str, Any]) -> Confirmation | Remark | None:
    """The result among a study's user attributes.

    Returns:
        None if there is none, and a remark if it is not what this release stores.
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
    """Store the result, in the place of an earlier one."""
    study.set_user_attr(CONFIRMED_KEY, confirmation.to_json())


def read_confirmed_call(
    attrs: Mapping[str, Any], digest: str, instance: str
) -> Call | FailedCall | Remark | None:
    """The call of a recipe on an instance among a study's user attributes; None: there is none."""
    key = _call_key(digest, instance)
    return read_call(attrs[key], instance, key) if key in attrs else None


def write_confirmed_call(
    study: optuna.Study, digest: str, instance: str, call: Call | FailedCall
) -> None:
    """Store a call under an attribute of its own, so that two processes can't lose any."""
    stored = call.to_json()
    stored.pop("instance", None)  # it is part of the key
    study.set_user_attr(_call_key(digest, instance), stored)


def _call_key(digest: str, instance: str) -> str:
    return f"{CALLS_PREFIX}{digest}:{instance}"


def title(name: str, number: int | None) -> str:
    """A candidate's name with the number of its trial, if it has one."""
    return name if number is None else f"{name} (trial {number})"


def describe_difference(found: Difference) -> str:
    """A difference with its interval, and whether it says which of the two is better."""
    if found.difference is None:
        return "unknown"
    if found.low is None or found.high is None:
        return f"{found.difference:+.4f}, of a single instance, so its error is not known"
    text = f"{found.difference:+.4f} (95 % interval {found.low:+.4f} to {found.high:+.4f})"
    return text if found.is_sure else f"{text}; not told apart"
