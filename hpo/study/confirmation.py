"""What `hpo.confirm` stored, read back: other versions and other programs write there, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ..problem.base import InvalidValuesError, Method

CONFIRMED_KEY = "confirmed"
CALLS_PREFIX = "confirm:"  # of study attributes that hold one call of a confirmation each
BASELINE = "default"  # the default recipe's name among those that are confirmed


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Difference(_Stored):
    """The winner minus another."""

    name: str
    trial: int | None
    digest: str
    difference: FiniteFloat | None
    standard_error: FiniteFloat | None = None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


class Standing(_Stored):
    """A candidate of the table."""

    name: str
    trial: int | None
    digest: str
    left: str
    reason: str | None = None
    rounds: int
    calls: int = 0
    longest_call_s: FiniteFloat
    cost: FiniteFloat | None = None
    loss: FiniteFloat | None
    standard_error: FiniteFloat | None = None
    difference: FiniteFloat | None = None
    difference_error: FiniteFloat | None = None
    search_loss: FiniteFloat | None = None
    search_difference: FiniteFloat | None = None
    search_difference_error: FiniteFloat | None = None

    @property
    def title(self) -> str:
        return title(self.name, self.trial)


class Confirmation(_Stored):
    """The winner and its race."""

    name: str
    trial: int | None
    digest: str
    loss: FiniteFloat
    standard_error: FiniteFloat | None
    recipe: dict[str, Any]
    against: dict[str, Difference]
    units: int
    instances: list[str] = Field(min_length=1)
    table: list[Standing]

    @property
    def title(self) -> str:
        return title(self.name, self.trial)

    @property
    def is_default(self) -> bool:
        return self.name == BASELINE

    def parsed_recipe(self, method: Method) -> dict[str, Any] | None:
        """None: it is of a release with other fields."""
        try:
            return method.complete(self.recipe)
        except (InvalidValuesError, TypeError):
            return None


def read_confirmation(attrs: Mapping[str, Any]) -> Confirmation | str | None:
    """The result among a study's attributes; None: there is none; a remark: it is unreadable."""
    stored = attrs.get(CONFIRMED_KEY)
    if stored is None:
        return None
    try:
        return Confirmation.model_validate(stored)
    except ValidationError:
        return (
            "What is stored as confirmed is not of this release: "
            "confirm again by python -m hpo.confirm."
        )


def title(name: str, number: int | None) -> str:
    """A candidate's name with the number of its trial, if it has one."""
    return name if number is None else f"{name} (trial {number})"


def describe_difference(found: Mapping[str, Any]) -> str:
    """A difference with its interval, and whether it says which of the two is better."""
    if found["difference"] is None:
        return "unknown"
    if found["low"] is None or found["high"] is None:
        return f"{found['difference']:+.4f}, of a single instance, so its error is not known"
    text = f"{found['difference']:+.4f} (95 % interval {found['low']:+.4f} to {found['high']:+.4f})"
    return text + ("; not told apart" if found["low"] <= 0 <= found["high"] else "")


class Left(StrEnum):
    """How a candidate left the race."""

    FINALIST = "finalist"  # it did not: it was measured on every instance
    BEHIND = "behind"  # more than two standard errors behind the leader
    TIED = "tied"  # in the worse half, though within two standard errors of the leader
    INFEASIBLE = "infeasible"  # a call was too long, or its loss not finite


@dataclass(frozen=True)
class Confirmed:
    """What `hpo.confirm` named, on instances that no trial was measured on."""

    name: str  # "default", "best 3" (of the search), or a recipe's file
    trial: int | None  # its number; null: no trial ran this recipe
    loss: float
    standard_error: float | None  # over runes
    difference: float | None  # to the default recipe's loss; null: it is the default
    low: float | None  # the difference's 95 % interval
    high: float | None

    @property
    def is_default(self) -> bool:
        """Whether nothing was found that is better than the default recipe."""
        return self.name == BASELINE


def confirmed_of(stored: Mapping[str, Any]) -> Confirmed:
    """Of the study's attribute."""
    against = stored.get("against", {}).get("default", {})
    return Confirmed(
        name=stored.get("name", "trial"),
        trial=stored.get("trial"),
        loss=stored["loss"],
        standard_error=stored.get("standard_error"),
        difference=against.get("difference"),
        low=against.get("low"),
        high=against.get("high"),
    )
