"""The winner of a confirmation at other speeds of the reference machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..analysis.intervals import interval, unit_means, units_of
from ..clock.plan import Plan
from ..formatting import counted
from ..problem.base import Instance
from ..process.logging import info
from ..study.confirmation import AtSpeed
from ..trial.record import FailedCall
from ..trial.stored import finite
from .candidates import Candidate
from .clock import ConfirmClock
from .measurements import Measurement, Measurements

MakeCall = Callable[[Candidate, Instance, Plan | None], Measurement]


def at_speeds(
    clock: ConfirmClock,
    winner: Candidate,
    speeds: Sequence[float],
    instances: Sequence[Instance],
    measurements: Measurements,
    call: MakeCall,
) -> tuple[AtSpeed, ...]:
    """Measure the winner on all instances at each speed, in order.

    Calls with the same number of steps are made once.

    Args:
        clock: the clock of a study with a reference machine.
        call: makes one call, or reads it if it is stored.

    Raises:
        StopError: the process was asked to stop; finished calls are stored.
    """
    reference = clock.reference
    assert reference is not None
    chosen = sorted(set(speeds))
    plans = {
        speed: [reference.plan(clock.method, winner.recipe, i, speed) for i in instances]
        for speed in chosen
    }
    asked = [
        (winner.recipe, instance.label, plan)
        for speed in chosen
        for instance, plan in zip(instances, plans[speed], strict=True)
    ]
    distinct = {(label, plan.mark): plan for _, label, plan in asked}
    known = measurements.count([(winner.recipe, label, p) for (label, _), p in distinct.items()])
    minutes = sum(plan.full_speed_s for plan in distinct.values()) / 60
    minutes *= 1 - known / len(distinct)
    info(
        f"{winner.title} at {counted(len(chosen), 'speed')}: {counted(len(distinct), 'call')}, "
        f"{known} of them known; the others take the reference machine {minutes:.0f} min"
    )
    return tuple(_at(speed, winner, instances, plans[speed], call) for speed in chosen)


def _at(
    speed: float,
    winner: Candidate,
    instances: Sequence[Instance],
    plans: Sequence[Plan],
    call: MakeCall,
) -> AtSpeed:
    losses: dict[str, float] = {}
    reason = None
    for instance, plan in zip(instances, plans, strict=True):
        measured = call(winner, instance, plan)
        if isinstance(measured, FailedCall):
            reason = f"{instance.label}: {measured.reason}"
        else:
            losses[instance.label] = measured.loss
    steps = [plan.steps for plan in plans]
    found = None
    if reason is None:
        found = interval(
            list(unit_means(losses, units_of({i.label: i.rune for i in instances})).values())
        )
    return AtSpeed(
        speed=speed,
        steps=(min(steps), max(steps)),
        loss=None if found is None else finite(found.mean),
        standard_error=None if found is None else finite(found.standard_error),
        reason=reason,
    )
