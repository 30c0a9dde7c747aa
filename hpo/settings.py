"""What the tables of a study file are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Natural = Annotated[int, Field(ge=0)]
Speed = Annotated[float, Field(ge=0.001, le=1000)]  # over that of a reference machine
PositiveFloat = Annotated[float, Field(gt=0)]


class Table(BaseModel):
    """A table of a study file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
