"""The reference clock: how many steps the reference machine would make of a call."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..problem.base import Instance, Method, Values
from .profile import NotTimedError, Profile


@dataclass(frozen=True)
class Plan:
    """What the reference machine would make of a call.

    ``steps``: that it would make in the deadline; the call makes as many here.
    ``seconds``: that the call would take there, at ``speed`` of that machine.
    """

    steps: int
    seconds: float
    speed: float = 1.0

    @property
    def full_speed_s(self) -> float:
        """Seconds that so many steps take on the machine itself."""
        return self.seconds * self.speed

    @property
    def mark(self) -> str:
        """What a loss depends on beside values and instance: calls of one mark are the same."""
        return f"steps {self.steps}"


@dataclass(frozen=True)
class Clock:
    """A machine whose time rules calls.

    Args:
        profile: of the machine.
        speed: 0.5 is a machine of this kind that is half as fast.
        name: that the study file gives it.
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
        """What this machine would make of a call of ``values`` on ``instance``.

        It makes the steps that the values ask for, or those for which there is time:

            (deadline_s * speed - startup_s) / step_s

        rounded down, and one at least. An instance of a speed of its own is a look at the whole
        call: it makes that share of the steps asked for. A machine of another speed is still
        asked for all of them.

        Args:
            values: complete.
            speed: of another machine, in the place of the instance's own and of the clock's.

        Raises:
            NotTimedError: the machine's profile can't tell.
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
