"""Map values to places on a drawing, and choose the ticks of an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to places from ``start`` to ``end``, in either direction.

    Raises:
        ValueError: the range is empty, or logarithmic and not positive.
    """

    low: float
    high: float
    start: float  # pixels
    end: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"no scale from {self.low} to {self.high}")

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        share = ((math.log(value) if self.log else value) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether the value is within the range."""
        return self.low <= value <= self.high

    def ticks(self, most: int = 6) -> list[float]:
        """At most ``most`` round values within the range, ascending."""
        ticks = _log_ticks(self.low, self.high, most) if self.log else []
        return ticks if len(ticks) > 1 else self._even(most)

    def _even(self, most: int) -> list[float]:
        exponent = math.floor(math.log10((self.high - self.low) / most))
        for power in (exponent, exponent + 1):
            for step in _STEPS:
                size = step * 10.0**power
                first, last = math.ceil(self.low / size), math.floor(self.high / size)
                if last - first + 1 <= most:
                    # Multiples of the step, so that errors do not add up.
                    return [float(f"{i * size:.12g}") for i in range(first, last + 1)]
        raise AssertionError("a step ten times the range has at most one tick")


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten, with as many of their multiples as fit."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        values = [float(f"{m}e{p}") for p in powers for m in multiples]
        ticks = [v for v in values if low <= v <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def tick_texts(ticks: Sequence[float], log: bool = False) -> list[str]:
    """The labels of ticks: all with the same number of decimals, large ones in thousands."""
    if any(abs(tick) >= 10_000 for tick in ticks):
        return [f"{tick / 1000:g}k" for tick in ticks]
    short = [f"{tick:.6g}" for tick in ticks]
    if log or any("e" in text for text in short):
        return short
    decimals = max((len(text.partition(".")[2]) for text in short), default=0)
    return [f"{tick:.{decimals}f}" for tick in ticks]
