"""Compare a recipe with the public reference recipes, on the instances that both have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..trial.record import Call
from .intervals import Interval
from .references import over_runes


@dataclass(frozen=True)
class Comparison:
    """Mean losses over runes: ours and a reference recipe's."""

    reference: str
    instances: int
    theirs: float
    ours: float
    difference: Interval  # ours minus theirs, paired

    @property
    def ratio(self) -> float:
        """Our loss over theirs."""
        return self.ours / self.theirs

    @property
    def bounds(self) -> str:
        """The 95 % interval of the difference as text."""
        if self.difference.units < 2:
            return "not known"
        return f"{self.difference.low:+.4f} to {self.difference.high:+.4f}"


def compare(
    references: Mapping[str, Mapping[str, Call]], own: Mapping[str, Call]
) -> list[Comparison]:
    """Compare with each reference recipe that has an instance in common with ``own``.

    Args:
        references: calls by recipe and instance.
        own: calls by instance.
    """
    found = []
    for name, calls in references.items():
        shared = [label for label in own if label in calls]
        if shared:
            ours = {label: own[label].loss for label in shared}
            theirs = {label: calls[label].loss for label in shared}
            differences = {label: ours[label] - theirs[label] for label in shared}
            found.append(
                Comparison(
                    reference=name,
                    instances=len(shared),
                    theirs=over_runes(theirs, shared).mean,
                    ours=over_runes(ours, shared).mean,
                    difference=over_runes(differences, shared),
                )
            )
    return found
