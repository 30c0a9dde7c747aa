"""A recipe beside the public reference recipes, on the instances that both were measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..trial.record import Call
from .intervals import Interval
from .references import over_runes


@dataclass(frozen=True)
class Against:
    """Mean losses over runes."""

    reference: str
    instances: int
    theirs: float
    ours: float
    gap: Interval  # ours minus theirs, paired

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs

    @property
    def bounds(self) -> str:
        """The gap's 95 % interval, for people."""
        if self.gap.units < 2:
            return "not known"
        return f"{self.gap.low:+.4f} to {self.gap.high:+.4f}"


def against(references: Mapping[str, Mapping[str, Call]], own: Mapping[str, Call]) -> list[Against]:
    """Each reference that has an instance in common; both arguments by instance, at last."""
    found = []
    for name, calls in references.items():
        shared = [label for label in own if label in calls]
        if shared:
            ours = {label: own[label].loss for label in shared}
            theirs = {label: calls[label].loss for label in shared}
            gaps = {label: ours[label] - theirs[label] for label in shared}
            found.append(
                Against(
                    reference=name,
                    instances=len(shared),
                    theirs=over_runes(theirs, shared).mean,
                    ours=over_runes(ours, shared).mean,
                    gap=over_runes(gaps, shared),
                )
            )
    return found
