"""The reference clock: how many steps of a call the reference machine would make."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..problem.base import Instance, Method, Values
from .profile import NotTimedError, Profile


@dataclass(frozen=True)
class Plan:
    """How a call would go on the reference machine.

    ``steps``: steps that it would make before the deadline; the call makes as many here.
    ``seconds``: time that the call would take there, at ``speed`` times that machine's speed.
    """

    steps: int
    seconds: float
    speed: float = 1.0

    @property
    def full_speed_s(self) -> float:
        """Seconds that these steps take on the reference machine at full speed."""
        return self.seconds * self.speed

    @property
    def mark(self) -> str:
        """The clock's part of a call's key: with equal values and instance, equal losses."""
        return f"steps {self.steps}"


@dataclass(frozen=True)
class Clock:
    """A reference machine, whose speed decides how many steps a call makes.

    Args:
        profile: cost model of the machine.
        speed: factor on its speed; 0.5 is a machine that is half as fast.
        name: the machine's name in the study file.
    """

    profile: Profile
    speed: float = 1.0
    name: str = ""

    @property
    def mark(self) -> str:
        """Its entry of a study's manifest."""
        return f"{self.profile.digest} at speed {self.speed:g}"

    def plan(
        self, method: Method, values: Values, instance: Instance, speed: float | None = None
    ) -> Plan:
        """Plan a call of ``values`` on ``instance`` for this machine.

        It makes the steps that the values ask for, or those for which there is time:

            (deadline_s * speed - startup_s) / step_s

        rounded down, and one at least. An instance of a speed of its own is a look at the whole
        call: it makes that share of the steps asked for. A machine of another speed is still
        asked for all of them.

        Args:
            values: complete.
            speed: replaces both the instance's speed and the clock's.

        Raises:
            NotTimedError: the machine's profile has no times for these values.
        """
        work = method.workload(values, instance)
        if work is None:
            raise NotTimedError('the method can\'t tell what its calls do; write machine = "wall"')
        steps = work.steps
        if speed is None and instance.speed is not None:
            steps, speed = round(instance.speed * steps), instance.speed
        speed = speed or self.speed
        startup_s, step_s = self.profile.startup_s(work), self.profile.step_s(work)
        if step_s > 0:
            steps = min(steps, math.floor((work.deadline_s * speed - startup_s) / step_s))
        steps = max(1, steps)
        return Plan(steps, round((startup_s + steps * step_s) / speed, 3), speed)
