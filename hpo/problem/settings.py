"""The tables of a study file that say what runes are measured, and how."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from finetune.canvas import Resize
from finetune.data.futhorc import ALPHABET

from ..settings import Count, Seed, Speed, Table

_AUTHORS_TRAIN = 10  # drawings of a rune, of twenty
_MOST_BINS = 10_000  # a table of so many times for each drawing fills no memory


class Instances(Table):
    """What a trial is measured on: each rune of each split with each seed, in this order."""

    source: Literal["omniglot", "drawn", "drawings"]
    alphabet: Annotated[str, Field(min_length=1)] | None = None  # of Omniglot; none: the Futhorc
    drawings: Path | None = None  # folder of a person's own, from where the command is started
    train: Count | None = None  # drawings of each rune that a call learns from; none: half
    runes: tuple[str, ...] = ()  # none: all that the source has
    splits: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)  # of the call's randomness
    # Of the reference machine, in calls on all of these; none: that of the study's clock.  The last
    # one counts, and calls at the others are looks that predict it.
    speeds: tuple[Speed, ...] = ()
    resize: Resize = "bilinear"
    pretrained: Path | None = None  # directory of networks; none: the embedded ones
    networks: tuple[str, ...] = ()  # names in that directory; none: all

    @model_validator(mode="before")
    @classmethod
    def _from_folder(cls, table: Any) -> Any:
        """Who names a folder need not say that it is the source."""
        if isinstance(table, dict) and "drawings" in table:
            return {"source": "drawings", **table}
        return table

    @model_validator(mode="after")
    def _distinct(self) -> Instances:
        _check_distinct(self, ("runes", "splits", "seeds", "networks"))
        return self

    @model_validator(mode="after")
    def _ascending(self) -> Instances:
        ordered = sorted(set(self.speeds))
        if list(self.speeds) != ordered:
            raise ValueError(
                f"speeds are {list(self.speeds)}; write each once and the lowest first: {ordered}"
            )
        return self

    @model_validator(mode="after")
    def _of_one_source(self) -> Instances:
        if self.alphabet is not None and self.source != "omniglot":
            raise ValueError(
                f'alphabet is of Omniglot and source is "{self.source}"; leave one of them out'
            )
        if self.drawings is not None and self.source != "drawings":
            raise ValueError(
                f'drawings names a folder and source is "{self.source}"; leave one of them out'
            )
        if self.drawings is None and self.source == "drawings":
            raise ValueError("drawings is missing; name the folder of your drawings")
        return self

    @property
    def has_points(self) -> bool:
        """Whether the author's thresholds are for these: ten drawings of Omniglot's Futhorc."""
        return (
            self.source == "omniglot"
            and self.alphabet in (None, ALPHABET)
            and self.train in (None, _AUTHORS_TRAIN)
        )


class Confirm(Table):
    """Where the best few recipes meet at the end: instances that no trial was measured on."""

    runes: tuple[str, ...] = ()  # none: those of the source that are not the study's
    # None: the study's own with other runes; with its own runes, numbers that it did not use.
    splits: tuple[Seed, ...] = ()
    seeds: tuple[Seed, ...] = ()
    networks: tuple[str, ...] = ()  # none: the study's
    resizes: tuple[Resize, ...] = ()  # none: the study's

    @model_validator(mode="after")
    def _distinct(self) -> Confirm:
        _check_distinct(self, type(self).model_fields)
        return self


def _check_distinct(table: Table, keys: Iterable[str]) -> None:
    for key in keys:
        values = getattr(table, key)
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{key} names {value!r} twice; write each once")


class Estimator(Table):
    """The table of times and noises that all trials share."""

    strata: Annotated[int, Field(gt=0, le=_MOST_BINS)] = 25
    replicates: Annotated[int, Field(ge=2, le=_MOST_BINS)] = 8
    seed: Seed = 0
