"""What `hpo.confirm` stored, read back: other versions and other programs write there, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from finetune.recipe import Recipe, RecipeError

from ..candidates import title
from ..choosing import BASELINE, CONFIRMED_KEY


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

    def parsed_recipe(self) -> Recipe | None:
        """None: it is of a release with other fields."""
        try:
            return Recipe.from_dict(self.recipe)
        except (RecipeError, TypeError):
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
