"""The clock of a confirmation's calls, and the error of a reference machine's predictions."""

from __future__ import annotations

import statistics

from ..clock.plan import Clock, Plan
from ..clock.profile import NotTimedError
from ..errors import UserError
from ..problem.base import Instance, Values
from ..study.config import StudyConfig
from ..study.confirmation import Prediction
from ..trial.record import Call

# A call by wall clock with less than this share of the planned steps does not count.
LEAST_SHARE = 0.5


class ConfirmClock:
    """Plans calls by the study's reference machine, or compares calls by wall clock with its plan.

    Args:
        by_wall: whether calls end by wall clock, even if the study has a reference machine.
    """

    def __init__(self, config: StudyConfig, by_wall: bool) -> None:
        self.method = config.load_method()
        self._reference = config.load_clock()
        self.by_wall = by_wall or self._reference is None
        self._made: list[tuple[Plan, Call]] = []

    @property
    def reference(self) -> Clock | None:
        """The study's reference machine; None if it has none."""
        return self._reference

    @property
    def name(self) -> str:
        """The clock's name, for people and records: "wall", or the machine and its speed."""
        if self.by_wall or self._reference is None:
            return "wall"
        return f"{self._reference.name} at speed {self._reference.speed:g}"

    def plan(self, recipe: Values, instance: Instance, speed: float | None = None) -> Plan | None:
        """Plan a call; None if it runs by wall clock.

        Raises:
            UserError: the reference machine's profile has no times for the recipe.
        """
        return None if self.by_wall else self._planned(recipe, instance, speed)

    def is_measurement(self, recipe: Values, instance: Instance, call: Call) -> bool:
        """Whether a call made enough of the steps that the reference machine would make."""
        planned = self._planned(recipe, instance) if self.by_wall else None
        return planned is None or call.steps is None or call.steps >= LEAST_SHARE * planned.steps

    def add(self, recipe: Values, instance: Instance, call: Call) -> None:
        """Add a call that was made; a call by wall clock is compared with its plan."""
        planned = self._planned(recipe, instance) if self.by_wall else None
        if planned is not None:
            self._made.append((planned, call))

    def too_few(self, recipe: Values, instance: Instance, call: Call) -> UserError:
        """The error to raise for a call that `is_measurement` rejects."""
        planned = self._planned(recipe, instance)
        wanted = "" if planned is None else f" of the {planned.steps}"
        return UserError(
            f"a call on {instance.label} made {call.steps}{wanted} steps that the reference "
            f"machine makes; less than {LEAST_SHARE:.0%} is no measurement: run this again when "
            "the machine is free (finished calls are kept), or leave out --wall"
        )

    @property
    def prediction(self) -> Prediction | None:
        """Calls by wall clock compared with their plans; None if there are no such calls."""
        steps = [call.steps / plan.steps for plan, call in self._made if call.steps]
        seconds = [
            call.seconds / plan.seconds
            for plan, call in self._made
            if call.seconds and plan.seconds > 0
        ]
        if not steps or not seconds:
            return None
        return Prediction(
            calls=len(steps),
            steps=statistics.median(steps),
            least_steps=min(steps),
            most_steps=max(steps),
            seconds=statistics.median(seconds),
        )

    def _planned(
        self, recipe: Values, instance: Instance, speed: float | None = None
    ) -> Plan | None:
        if self._reference is None:
            return None
        try:
            return self._reference.plan(self.method, recipe, instance, speed)
        except NotTimedError as error:
            raise UserError(f"a candidate can't be planned: {error}") from error
