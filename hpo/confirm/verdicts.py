"""Judge the calls of a race by the study's limits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ..study.config import StudyConfig
from ..trial.record import Call
from .measurements import Measurement


class Verdicts:
    """Judges calls by a study's limits, and collects each contender's calls and reasons.

    Args:
        config: the study file, with limits of seconds and of the cost of an answer.
    """

    def __init__(self, config: StudyConfig) -> None:
        self._feasible_s, self._allowed = config.feasible_s, config.limits.cost
        self._reasons: dict[str, str] = {}
        self._costs: dict[str, list[float]] = {}
        self._made: dict[str, list[Call]] = {}

    def judge(
        self, contender: str, measured: Measurement, label: str, seconds: float, took: str = "took"
    ) -> tuple[float, float]:
        """The loss of a call (NaN puts the contender out of the race) and its seconds.

        Args:
            contender: digest of the contender.
            label: label of the instance.
            seconds: time that the limit applies to.
            took: verb for the time in messages, such as "took".
        """
        if not isinstance(measured, Call):
            self.put_out(contender, measured.reason, label)
            return math.nan, seconds
        self._made.setdefault(contender, []).append(measured)
        if measured.cost is not None:
            self._costs.setdefault(contender, []).append(measured.cost)
        cost = self.cost(contender)
        if seconds > self._feasible_s:
            allowed = f"{self._feasible_s:g} are allowed"
            self.put_out(contender, f"a call {took} {seconds:.1f} s; {allowed}", label)
        elif self._allowed is not None and cost is not None and cost > self._allowed:
            words = f"an answer costs {cost:.2f} of the plain network's"
            self.put_out(contender, f"{words}; {self._allowed:g} are allowed", label)
            return math.nan, seconds
        return measured.loss, seconds

    def put_out(self, contender: str, reason: str, label: str = "") -> None:
        """Put a contender out; the instance's label is added unless the reason has it."""
        self._reasons[contender] = reason if label in reason else f"{label}: {reason}"

    def reason(self, contender: str) -> str | None:
        """Why a contender is out; None if it is not."""
        return self._reasons.get(contender)

    def cost(self, contender: str) -> float | None:
        """Mean CPU time of an answer relative to the plain network's; None if unknown."""
        costs = self._costs.get(contender)
        return statistics.fmean(costs) if costs else None

    def made(self, contender: str) -> Sequence[Call]:
        """The contender's calls with a loss."""
        return self._made.get(contender, ())
