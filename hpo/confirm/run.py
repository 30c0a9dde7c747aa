"""Confirm a study: race the candidates, and store the result."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from tqdm import tqdm

from ..analysis.intervals import units_of
from ..clock.plan import Plan
from ..errors import UserError
from ..problem.base import Instance, Problem, Progress
from ..process.logging import info, no_bars, warn
from ..process.signals import raise_if_stopped
from ..study.config import StudyConfig
from ..study.confirmation import Confirmation, Left, write_confirmation
from ..study.manifest import check_manifest, make_manifest, read_manifest
from ..trial.record import Call, FailedCall
from .candidates import Candidate, choose_candidates
from .clock import ConfirmClock
from .halving import Contender, block_ends, halve, most_calls
from .measurements import Measurement, Measurements, measure, table_seed
from .result import result_of
from .speeds import at_speeds
from .verdicts import Verdicts

_REFRESH_S = 1.0


class NoneFeasibleError(Exception):
    """No candidate kept the limits; the message has the reason of each."""


def confirm(
    config: StudyConfig,
    study: optuna.Study,
    *,
    data: Path | None,
    top: int,
    recipes: Sequence[Path],
    rounds: int,
    by_wall: bool = False,
    speeds: Sequence[float] = (),
) -> Confirmation:
    """Measure the candidates, name the winner and store the result with the study.

    Args:
        data: directory of the data, as in `StudyConfig.load_problem`.
        top: number of the best trials that take part.
        recipes: files with recipes that also take part.
        rounds: number of rounds of halving.
        by_wall: whether calls end by wall clock, even if the study has a reference machine.
        speeds: further speeds of the reference machine to measure the winner at.

    Raises:
        NoneFeasibleError: no candidate kept the limits; nothing is stored.
        UserError: the study, a recipe, the data or the instances of ``[confirm]`` can't be used.
        StopError: the process was asked to stop; finished calls are stored.
    """
    clock = ConfirmClock(config, by_wall)
    if speeds and clock.reference is None:
        raise UserError(
            "--speeds are of a reference machine, and the study has none; name one in [clock]"
        )
    candidates = choose_candidates(config, study, top, recipes)
    problem = config.load_problem(data)
    manifest = make_manifest(config, problem)
    _check_same_measure(study, manifest)
    instances = problem.instances(held_out=True)
    measurements = Measurements(config, study, manifest, problem, clock.method)
    with _Calls(config, candidates, problem, measurements, rounds, clock) as calls:
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
        reasons = [
            f"{c.name}: {why}" for c in candidates if (why := calls.verdicts.reason(c.digest))
        ]
        raise NoneFeasibleError(f"no candidate kept the limits; {'; '.join(reasons)}")
    result = result_of(
        halved,
        candidates,
        reasons={c.digest: calls.verdicts.reason(c.digest) for c in candidates},
        costs={c.digest: calls.verdicts.cost(c.digest) for c in candidates},
        calls={c.digest: calls.verdicts.made(c.digest) for c in candidates},
        rounds=block_ends(len(instances), rounds),
        estimator={**config.estimator.model_dump(), "seed": table_seed(config)},
        feasible_s=config.feasible_s,
        code=manifest["code"],
    ).model_copy(update={"clock": clock.name, "prediction": clock.prediction})
    write_confirmation(study, result)
    if speeds and clock.reference is not None:
        winner = next(c for c in candidates if c.digest == result.digest)
        found = at_speeds(clock, winner, speeds, instances, measurements, calls.call)
        result = result.model_copy(update={"speeds": found})
        write_confirmation(study, result)
    return result


def _check_same_measure(study: optuna.Study, mine: Mapping[str, str]) -> None:
    """Check that drawings and networks are the study's; warn if the code differs.

    Raises:
        UserError: something else differs; the message says what.
    """
    theirs = read_manifest(study.user_attrs).get("code")
    if theirs is not None and theirs != mine["code"]:
        warn(
            f"the search ran with other code ({theirs}, and this is {mine['code']}): all "
            "candidates are measured with this one, but losses of the search are of the other"
        )
    check_manifest(study, {entry: value for entry, value in mine.items() if entry != "code"})


class _Calls:
    """Makes the calls that are not stored yet, and shows progress."""

    def __init__(
        self,
        config: StudyConfig,
        candidates: Sequence[Candidate],
        problem: Problem,
        measurements: Measurements,
        rounds: int,
        clock: ConfirmClock,
    ) -> None:
        self._config, self._measurements, self._rounds = config, measurements, rounds
        self._clock = clock
        self._candidates = {c.digest: c for c in candidates}
        self._problem = problem
        instances = problem.instances(held_out=True)
        self._instances = {i.label: i for i in instances}
        self.verdicts = Verdicts(config)
        calls = most_calls(len(candidates) - 1, len(instances), rounds)
        known = measurements.count(
            (c.recipe, i.label, clock.plan(c.recipe, i)) for c in candidates for i in instances
        )
        info(
            f"{len(candidates)} candidates, {len(instances)} instances: at most {calls} calls"
            + _duration(calls - min(known, calls), candidates)
            + (f"; {known} are known" if known else "")
        )
        self._bar = tqdm(
            total=calls, unit="call", disable=no_bars(), dynamic_ncols=True, desc="round 1"
        )
        self._shown_at = 0.0

    def __enter__(self) -> _Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def measure(self, digest: str, label: str) -> tuple[float, float]:
        """The loss (NaN if there is none) and the seconds of a candidate on an instance."""
        candidate, instance = self._candidates[digest], self._instances[label]
        plan = self._clock.plan(candidate.recipe, instance)
        measured = self.call(candidate, instance, plan)
        self._bar.update()
        if isinstance(measured, Call):
            self._clock.add(candidate.recipe, instance, measured)
        if plan is None:
            seconds = measured.seconds or 0.0
            return self.verdicts.judge(digest, measured, label, seconds)
        took = "would take, on the reference machine,"
        return self.verdicts.judge(digest, measured, label, plan.seconds, took)

    def call(self, candidate: Candidate, instance: Instance, plan: Plan | None) -> Measurement:
        """A candidate's call on an instance: read if it is stored, else made."""
        raise_if_stopped()
        label = instance.label
        measured = self._measurements.read(candidate.recipe, label, plan)
        if measured is not None and not self._is_measurement(candidate, instance, measured):
            measured = None  # made by a busy machine, so it does not count
        if measured is None:
            title = f"{candidate.title}, {label}"

            def on_step(progress: Progress) -> None:
                raise_if_stopped()
                now = time.monotonic()
                if now - self._shown_at >= _REFRESH_S:
                    self._shown_at = now
                    self._bar.set_postfix_str(f"{title}: {progress.share:.0%}")

            measured = measure(
                self._config,
                self._problem,
                self._clock.method,
                candidate.recipe,
                instance,
                on_step,
                plan,
            )
            if isinstance(measured, Call) and not self._is_measurement(
                candidate, instance, measured
            ):
                raise self._clock.too_few(candidate.recipe, instance, measured)
            self._measurements.write(candidate.recipe, label, measured, plan)
            if self._bar.disable:
                info(f"{title}: {_loss(measured)}, {measured.seconds or 0.0:.1f} s")
        return measured

    def _is_measurement(
        self, candidate: Candidate, instance: Instance, measured: Measurement
    ) -> bool:
        return isinstance(measured, FailedCall) or self._clock.is_measurement(
            candidate.recipe, instance, measured
        )

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
    """Estimated time of ``calls`` calls, by their mean time in the search."""
    seconds = [c.trial.longest_s for c in candidates if c.trial and c.trial.longest_s is not None]
    if not seconds or not calls:
        return ""
    return f", about {max(1.0, calls * statistics.median(seconds) / 60):.0f} min"
