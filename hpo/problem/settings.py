"""The tables of a study file for runes: instances, confirmation and estimator."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from finetune.canvas import Resize
from finetune.data.futhorc import ALPHABET

from ..settings import Count, Seed, Speed, Table

_AUTHORS_TRAIN = 10  # of twenty drawings, the challenge trains on so many
_MOST_BINS = 10_000  # limit, so that the table of times fits into memory


class Instances(Table):
    """The instances of trials: each rune of each split with each seed, in this order."""

    source: Literal["omniglot", "drawn", "drawings"]
    """Drawings of people, of the package itself, or your own; not needed with `drawings`."""
    alphabet: Annotated[str, Field(min_length=1)] | None = None
    """A directory in Omniglot's `images_background` or `images_evaluation`. None: the Futhorc's."""
    drawings: Path | None = None
    """Your own: a folder of PNG files for each rune, or PNG files of one rune; from where
    you start the command."""
    train: Count | None = None
    """How many drawings of each rune a call learns from; the others score it. None: half."""
    runes: tuple[str, ...] = ()
    """Names, such as `character02` or `thorn`. Empty: all that the source has."""
    splits: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Seeds that deal a rune's drawings into those to train on and those to score on."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Of the random numbers of a call."""
    speeds: tuple[Speed, ...] = ()
    """Each instance is measured at each of them: at 0.3 with three tenths of the reference
    machine's time and of the steps that a recipe asks for. The last one counts, and calls at the
    others are looks that predict it. Empty: that of the clock."""
    resize: Resize = "bilinear"
    """How drawings become 28x28; drawings of that size are not resized."""
    pretrained: Path | None = None
    """Directory of networks; number i goes with rune i, counted round. None: the embedded one."""
    networks: tuple[str, ...] = ()
    """Names of those in the directory that are used, such as `unet_1`. Empty: all."""

    @model_validator(mode="before")
    @classmethod
    def _from_folder(cls, table: Any) -> Any:
        """A table that names a folder need not name the source as well."""
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
        """Whether the challenge's points apply: ten drawings of Omniglot's Futhorc."""
        return (
            self.source == "omniglot"
            and self.alphabet in (None, ALPHABET)
            and self.train in (None, _AUTHORS_TRAIN)
        )


class Confirm(Table):
    """The instances of a confirmation of the best few recipes; no trial is measured on them."""

    runes: tuple[str, ...] = ()
    """Empty: those of the source that `[instances]` does not name, else all."""
    splits: tuple[Seed, ...] = ()
    """Empty: the study's; with the study's own runes, numbers that it does not use."""
    seeds: tuple[Seed, ...] = ()
    """As `splits`."""
    networks: tuple[str, ...] = ()
    """Empty: the study's."""
    resizes: tuple[Resize, ...] = ()
    """Each instance is measured with each of them. Empty: the study's."""

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
    """Settings of the table of times and noises that losses of all trials are measured on."""

    strata: Annotated[int, Field(gt=0, le=_MOST_BINS)] = 25
    """Times for each drawing, one in each of as many bins, which are narrow where losses change."""
    replicates: Annotated[int, Field(ge=2, le=_MOST_BINS)] = 8
    """Independent sets of them."""
    seed: Seed = 0
    """Of times and noises."""
