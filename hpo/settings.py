"""What the tables of a study file are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from .arguments import LARGEST_COUNT, LARGEST_NUMBER, LARGEST_SEED

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Natural = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Count = Annotated[int, Field(gt=0, le=LARGEST_COUNT)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST_NUMBER)]
Speed = Annotated[float, Field(ge=0.001, le=1000)]  # over that of a reference machine


class Table(BaseModel):
    """A table of a study file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
