"""Read stored values leniently: other releases and other programs write to the database, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import (
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    Strict,
    ValidationError,
)


def _moment(value: object) -> object:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
            if value.tzinfo is not None:
                return value.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    elif isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    raise ValueError("should be a time in ISO 8601 with its offset from UTC")


def _moment_text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


# Strict types: text, true, NaN and Infinity are not read as numbers.
Number = Annotated[float, Strict(), AllowInfNan(False)]
Whole = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
# A time in UTC, stored as text.
Moment = Annotated[
    datetime, BeforeValidator(_moment), PlainSerializer(_moment_text, return_type=str)
]


class Stored(BaseModel):
    """Base of models of JSON objects in a database.  Fields of other releases are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """The fields that were set, by their stored names, as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


@dataclass(frozen=True)
class Remark:
    """A stored value that this release can't read.

    Args:
        place: attribute and path to the value in it, such as ``instances.3.loss``.
        problem: what is wrong with it, worded to follow the place.
    """

    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.place} {self.problem}"


M = TypeVar("M", bound=Stored)
_Path = tuple[int | str, ...]
_PROBLEMS = {"missing": "is missing", "model_type": "should be an object"}


def read_stored(
    model: type[M], value: object, place: Sequence[str] = ()
) -> tuple[M | None, tuple[Remark, ...]]:
    """Read as much of a value as fits the model.

    Parts that do not fit are left out: an optional field, or an entry of a list.  An object that
    lacks a required field is left out as a whole.

    Args:
        value: parsed JSON.
        place: where it was found, for remarks.

    Returns:
        The model, or None if nothing is left of it; and a remark for each part that was left out.
    """
    remarks: tuple[Remark, ...] = ()
    while True:
        try:
            return model.model_validate(value), remarks
        except ValidationError as error:
            # Later rounds only find what the first one has made incomplete, so its remarks stand.
            remarks = remarks or remarks_of(error, place)
            # An object that lacks a field is unfit itself.
            unfit = {
                e["loc"][:-1] if e["type"] == "missing" else e["loc"]
                for e in error.errors(include_url=False)
            }
            if () in unfit:
                return None, remarks
            value = _without(value, unfit, ())


def remarks_of(error: ValidationError, place: Sequence[str] = ()) -> tuple[Remark, ...]:
    """A remark for each part of a value at ``place`` that is not what its model says."""
    found = []
    for e in error.errors(include_url=False):
        words = e["msg"].removeprefix("Value error, ").removeprefix("Input ")
        where = ".".join(map(str, (*place, *e["loc"])))
        found.append(Remark(where, _PROBLEMS.get(e["type"], words)))
    return tuple(found)


def _without(value: Any, unfit: set[_Path], path: _Path) -> Any:
    """A copy of a JSON value without the parts at the ``unfit`` paths."""
    if isinstance(value, dict):
        return {
            key: _without(part, unfit, (*path, key))
            for key, part in value.items()
            if (*path, key) not in unfit
        }
    if isinstance(value, (list, tuple)):
        return [
            _without(part, unfit, (*path, i))
            for i, part in enumerate(value)
            if (*path, i) not in unfit
        ]
    return value


def finite(value: object) -> float | None:
    """``value`` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number in JSON may be of any size
        return None
    return number if math.isfinite(number) else None
