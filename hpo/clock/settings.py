"""The table of a study file that says which clock rules its calls."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ..errors import UserError
from ..settings import Speed, Table
from .plan import Clock
from .profile import load_profile

WALL = "wall"


class ClockTable(Table):
    """Whether a call runs by wall clock or by the speed of a reference machine."""

    machine: Annotated[str, Field(min_length=1)] = WALL
    """`wall`: that of the machine a call runs on; or a profile: a name in
    `studies/machines`, or a path."""
    speed: Speed = 1.0
    """How fast the reference machine is, over its profile."""

    @property
    def is_wall(self) -> bool:
        """Whether wall clock rules."""
        return self.machine == WALL

    @model_validator(mode="after")
    def _of_a_machine(self) -> ClockTable:
        if self.is_wall and self.speed != 1:
            raise ValueError(
                f"speed is {self.speed:g} and machine is wall, which has its own; "
                "name the profile of a machine"
            )
        return self

    def load(self, method: str) -> Clock | None:
        """The reference clock; None where wall clock rules.

        Args:
            method: the name of the study's method.

        Raises:
            UserError: the profile is not there, can't be used, or is of another method.
        """
        if self.is_wall:
            return None
        profile = load_profile(self.machine)
        if profile.method != method:
            raise UserError(
                f"clock.machine is {self.machine!r}, which was timed with method "
                f'{profile.method!r} and not {method!r}; write "wall", or calibrate that method'
            )
        return Clock(profile, self.speed, self.machine)
