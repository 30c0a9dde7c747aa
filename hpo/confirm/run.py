"""Confirm a study: make the calls of each round once, and store the result."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from tqdm import tqdm

from ..analysis.intervals import units_of
from ..problem.base import Problem, Progress
from ..process.logging import info, warn
from ..process.signals import raise_if_stopped
from ..study.config import StudyConfig
from ..study.confirmation import Confirmation, Left, write_confirmation
from ..study.manifest import check_manifest, make_manifest, read_manifest
from ..trial.record import Call, FailedCall
from .candidates import Candidate, choose_candidates
from .halving import Contender, block_ends, halve, most_calls
from .measurements import Measurement, Measurements, measure, table_seed
from .result import result_of

_REFRESH_S = 1.0


class NoneFeasibleError(Exception):
    """No candidate kept the limits; the message names the reason of each."""


def confirm(
    config: StudyConfig,
    study: optuna.Study,
    *,
    data: Path | None,
    top: int,
    recipes: Sequence[Path],
    rounds: int,
) -> Confirmation:
    """Measure the candidates, name the winner and store the result with the study.

    Args:
        data: where drawings are, as in `StudyConfig.load_problem`.
        top: so many of the best trials take part.
        recipes: files of recipes that take part as well.
        rounds: of halving.

    Raises:
        NoneFeasibleError: nothing is stored.
        UserError: the study, a recipe, the data or what ``[confirm]`` asks for is not usable.
        StopError: the process was asked to stop; finished calls are stored.
    """
    candidates = choose_candidates(config, study, top, recipes)
    problem = config.load_problem(data)
    manifest = make_manifest(config, problem)
    _check_same_measure(study, manifest)
    instances = problem.instances(held_out=True)
    measurements = Measurements(config, study, manifest, problem)
    with _Calls(config, candidates, problem, measurements, rounds) as calls:
        halved = halve(
            [c.digest for c in candidates],
            candidates[0].digest,
            units_of({i.label: i.rune for i in instances}),
            calls.measure,
            rounds=rounds,
            feasible_s=config.feasible_s,
            order=random.Random(),
            on_round=calls.tell,
        )
    if not halved.finalists:
        reasons = [f"{c.name}: {why}" for c in candidates if (why := calls.reason(c))]
        raise NoneFeasibleError(f"no candidate kept the limits; {'; '.join(reasons)}")
    result = result_of(
        halved,
        candidates,
        reasons={c.digest: calls.reason(c) for c in candidates},
        costs={c.digest: calls.cost(c) for c in candidates},
        calls={c.digest: calls.made(c) for c in candidates},
        rounds=block_ends(len(instances), rounds),
        estimator={**config.estimator.model_dump(), "seed": table_seed(config)},
        feasible_s=config.feasible_s,
        code=manifest["code"],
    )
    write_confirmation(study, result)
    return result


def _check_same_measure(study: optuna.Study, mine: Mapping[str, str]) -> None:
    """Check that drawings and networks are the study's; warn if the code is another one.

    Raises:
        UserError: something else differs; says what.
    """
    theirs = read_manifest(study.user_attrs).get("code")
    if theirs is not None and theirs != mine["code"]:
        warn(
            f"the search ran with other code ({theirs}, and this is {mine['code']}): all "
            "candidates are measured with this one, but losses of the search are of the other"
        )
    check_manifest(study, {entry: value for entry, value in mine.items() if entry != "code"})


class _Calls:
    """Makes those calls that are not stored yet, and shows progress."""

    def __init__(
        self,
        config: StudyConfig,
        candidates: Sequence[Candidate],
        problem: Problem,
        measurements: Measurements,
        rounds: int,
    ) -> None:
        self._config, self._measurements, self._rounds = config, measurements, rounds
        self._candidates = {c.digest: c for c in candidates}
        self._problem = problem
        instances = problem.instances(held_out=True)
        self._instances = {i.label: i for i in instances}
        self._reasons: dict[str, str] = {}
        self._costs: dict[str, list[float]] = {}
        self._made: dict[str, list[Call]] = {}
        calls = most_calls(len(candidates) - 1, len(instances), rounds)
        known = measurements.count([c.recipe for c in candidates])
        info(
            f"{len(candidates)} candidates, {len(instances)} instances: at most {calls} calls"
            + _duration(calls - min(known, calls), candidates)
            + (f"; {known} are known" if known else "")
        )
        # `disable=None` means to tqdm: show the bar on a terminal alone.
        self._bar = tqdm(total=calls, unit="call", disable=None, dynamic_ncols=True, desc="round 1")
        self._shown_at = 0.0

    def __enter__(self) -> _Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def measure(self, digest: str, label: str) -> tuple[float, float]:
        """The loss (NaN: there is none) and the seconds of a candidate on an instance."""
        raise_if_stopped()
        candidate = self._candidates[digest]
        measured = self._measurements.read(candidate.recipe, label)
        if measured is None:
            title = f"{candidate.title}, {label}"

            def on_step(progress: Progress) -> None:
                raise_if_stopped()
                now = time.monotonic()
                if now - self._shown_at >= _REFRESH_S:
                    self._shown_at = now
                    self._bar.set_postfix_str(f"{title}: {progress.share:.0%}")

            instance = self._instances[label]
            measured = measure(self._config, self._problem, candidate.recipe, instance, on_step)
            self._measurements.write(candidate.recipe, label, measured)
            if self._bar.disable:
                info(f"{title}: {_loss(measured)}, {measured.seconds or 0.0:.1f} s")
        self._bar.update()
        return self._judge(candidate, label, measured)

    def _judge(
        self, candidate: Candidate, label: str, measured: Measurement
    ) -> tuple[float, float]:
        """The loss (NaN puts it out of the race) and the seconds; keeps why it is infeasible."""
        seconds = measured.seconds or 0.0
        if isinstance(measured, FailedCall):
            self._reasons[candidate.digest] = f"{label}: {measured.reason}"
            return math.nan, seconds
        self._made.setdefault(candidate.digest, []).append(measured)
        if seconds > self._config.feasible_s:
            allowed = f"{self._config.feasible_s:g} are allowed"
            self._reasons[candidate.digest] = f"{label}: a call took {seconds:.1f} s; {allowed}"
        elif (why := self._cost_reason(candidate, measured)) is not None:
            self._reasons[candidate.digest] = f"{label}: {why}"
            return math.nan, seconds
        return measured.loss, seconds

    def _cost_reason(self, candidate: Candidate, measured: Call) -> str | None:
        """Why an answer costs too much, by the mean of the candidate's calls; None: it does not."""
        if measured.cost is not None:
            self._costs.setdefault(candidate.digest, []).append(measured.cost)
        cost, allowed = self.cost(candidate), self._config.limits.cost
        if cost is None or allowed is None or cost <= allowed:
            return None
        return f"an answer costs {cost:.2f} of the plain network's; {allowed:g} are allowed"

    def cost(self, candidate: Candidate) -> float | None:
        """CPU time of an answer over the plain network's; None: not known."""
        costs = self._costs.get(candidate.digest)
        return statistics.fmean(costs) if costs else None

    def made(self, candidate: Candidate) -> Sequence[Call]:
        """A candidate's calls that gave a loss."""
        return self._made.get(candidate.digest, ())

    def reason(self, candidate: Candidate) -> str | None:
        """Why a candidate is infeasible; None: it is not."""
        return self._reasons.get(candidate.digest)

    def tell(self, number: int, contenders: Sequence[Contender]) -> None:
        """Log how a round ended."""
        running = [c for c in contenders if c.left == Left.FINALIST]
        left = [c for c in contenders if c.left != Left.FINALIST and c.rounds == number - 1]
        parts = [f"{len(running)} of {len(running) + len(left)} candidates go on"]
        for how in (Left.BEHIND, Left.TIED, Left.INFEASIBLE):
            names = [self._candidates[c.candidate].title for c in left if c.left == how]
            parts += [f"{how}: {', '.join(names)}"] if names else []
        last = number == len(block_ends(len(self._instances), self._rounds))
        if not last or left:
            info(f"round {number}: {'; '.join(parts)}")
        n, n_instances = len(self._candidates) - 1, len(self._instances)
        self._bar.total = self._bar.n + most_calls(
            n, n_instances, self._rounds, number, max(0, len(running) - 1)
        )
        self._bar.set_description_str(f"round {number if last else number + 1}")


def _loss(measured: Measurement) -> str:
    return "no loss" if isinstance(measured, FailedCall) else f"loss {measured.loss:.4f}"


def _duration(calls: int, candidates: Sequence[Candidate]) -> str:
    """Estimated time of so many calls, by their length in the search."""
    seconds = [c.trial.longest_s for c in candidates if c.trial and c.trial.longest_s is not None]
    if not seconds or not calls:
        return ""
    return f", about {max(1.0, calls * statistics.median(seconds) / 60):.0f} min"
