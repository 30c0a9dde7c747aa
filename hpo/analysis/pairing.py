"""Compare two recipes on the instances that both were measured on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..trial.record import Call
from .intervals import interval, unit_means, units_of


@dataclass(frozen=True)
class Ratio:
    """A ratio of losses with its 95 % interval, over runes."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Pairing:
    """Losses of two recipes on their shared instances, by rune and by noise level."""

    instances: int
    runes: Mapping[str, tuple[float, float]]  # by rune: mean losses of the first and the second
    bins: Sequence[tuple[float, float] | None]  # in ten equal bins of t: the same; None: unknown
    ratio: Ratio  # the second's loss over the first's, paired


def pair(first: Mapping[str, Call], second: Mapping[str, Call]) -> Pairing | None:
    """Compare calls, given by instance; None if they share no instance."""
    shared = [label for label in first if label in second]
    if not shared:
        return None
    rune_of = {label: label.partition("/")[0] for label in shared}
    units = units_of(rune_of)
    # In logarithms, because a hard rune is hard for both by about the same factor.
    logs = {label: math.log(second[label].loss / first[label].loss) for label in shared}
    found = interval(list(unit_means(logs, units).values()))
    runes = {
        rune: (_mean(first, labels), _mean(second, labels))
        for rune in dict.fromkeys(rune_of.values())
        if (labels := [label for label in shared if rune_of[label] == rune])
    }
    return Pairing(
        instances=len(shared),
        runes=runes,
        bins=_bins(first, second, shared),
        ratio=Ratio(math.exp(found.mean), _exp(found.low), _exp(found.high)),
    )


def _mean(calls: Mapping[str, Call], labels: Sequence[str]) -> float:
    return sum(calls[label].loss for label in labels) / len(labels)


def _bins(
    first: Mapping[str, Call], second: Mapping[str, Call], shared: Sequence[str]
) -> list[tuple[float, float] | None]:
    both = [(first[label].per_t_bin or (), second[label].per_t_bin or ()) for label in shared]
    found: list[tuple[float, float] | None] = []
    for i in range(max((min(len(a), len(b)) for a, b in both), default=0)):
        pairs = [
            (x, y)
            for a, b in both
            if i < min(len(a), len(b)) and (x := a[i]) is not None and (y := b[i]) is not None
        ]
        n = len(pairs)
        found.append((sum(x for x, _ in pairs) / n, sum(y for _, y in pairs) / n) if n else None)
    return found


def _exp(value: float) -> float:
    return math.exp(value) if math.isfinite(value) else (math.inf if value > 0 else 0.0)
