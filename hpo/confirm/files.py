"""A race of files: `hpo.confirm --submission A.py --submission B.py`, a leaderboard.

The files are measured on the study's held-out instances, each call in a process of its own.  The
study's trials and its confirmed result are not used and stay as they are.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from tqdm import tqdm

from ..analysis.intervals import Interval, units_of
from ..errors import UserError
from ..formatting import counted
from ..problem.base import Method, Problem, Progress, Values
from ..problem.registry import file_text_digest, load_submission
from ..process.logging import info, no_bars
from ..process.signals import raise_if_stopped
from ..study.config import StudyConfig
from ..study.confirmation import Left
from ..study.manifest import make_manifest
from ..trial.record import FailedCall
from ..trial.stored import finite
from .halving import Contender, Halved, halve, most_calls
from .measurements import Measurement, Measurements, measure
from .verdicts import Verdicts

_REFRESH_S = 1.0


@dataclass(frozen=True)
class Submission:
    """A file that takes part.

    Args:
        name: name of the file, or its path if two files have the same name.
        digest: digest of its text.
        method: the file as a method; None if it can't be called, with the ``reason``.
    """

    name: str
    digest: str
    method: Method | None
    reason: str = ""


@dataclass(frozen=True)
class Place:
    """A row of the leaderboard."""

    submission: Submission
    contender: Contender
    loss: Interval
    difference: Interval | None  # to the first file; None for the first file itself
    cost: float | None  # CPU time of an answer, relative to the plain network's
    reason: str  # why it is out of the race; empty if it is not


@dataclass(frozen=True)
class Leaderboard:
    """The files by their losses.

    Args:
        places: finalists by mean loss, then the others, last dropped first.
        baseline: name of the file that the others are compared with.
        instances: labels of the instances.
    """

    places: tuple[Place, ...]
    baseline: str
    instances: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        return {
            "baseline": self.baseline,
            "instances": list(self.instances),
            "places": [_place_json(place) for place in self.places],
        }


def read_submissions(paths: Sequence[Path]) -> list[Submission]:
    """Read the files.

    Raises:
        UserError: a file can't be read, or two are the same.
    """
    names = [path.name for path in paths]
    found: dict[str, Submission] = {}
    for path in paths:
        name = path.name if names.count(path.name) == 1 else str(path)
        digest = file_text_digest(path)
        if digest in found:
            raise UserError(
                f"--submission {path} is the same as {found[digest].name}; name it once"
            )
        try:
            found[digest] = Submission(name, digest, load_submission(path))
        except UserError as error:  # it is last on the leaderboard, with the reason
            found[digest] = Submission(name, digest, None, str(error))
    return list(found.values())


def race_files(
    config: StudyConfig,
    study: optuna.Study,
    submissions: Sequence[Submission],
    *,
    data: Path | None,
    rounds: int,
) -> Leaderboard:
    """Measure the files against each other by successive halving.

    Args:
        submissions: the files; all others are compared with the first, which is never dropped.
        data: directory of the data, as in `StudyConfig.load_problem`.
        rounds: number of rounds of halving.

    Raises:
        UserError: the data or the instances of ``[confirm]`` can't be used.
        StopError: the process was asked to stop; finished calls are stored.
    """
    problem = config.load_problem(data)
    instances = problem.instances(held_out=True)
    calls = _Calls(config, study, problem, submissions)
    most = most_calls(len(submissions) - 1, len(instances), rounds)
    info(f"{counted(len(submissions), 'file')}, {len(instances)} instances: at most {most} calls")
    with calls.bar:
        halved = halve(
            [s.digest for s in submissions],
            submissions[0].digest,
            units_of({i.label: i.rune for i in instances}),
            calls.measure,
            rounds=rounds,
            feasible_s=config.feasible_s,
            order=random.Random(),
        )
    return _leaderboard(halved, submissions, calls)


class _Calls:
    """Makes the calls that are not stored in the study's database yet."""

    def __init__(
        self,
        config: StudyConfig,
        study: optuna.Study,
        problem: Problem,
        submissions: Sequence[Submission],
    ) -> None:
        self._config, self._problem = config, problem
        self._submissions = {s.digest: s for s in submissions}
        self._instances = {i.label: i for i in problem.instances(held_out=True)}
        manifest = make_manifest(config, problem)
        self._measurements = {
            s.digest: Measurements(
                config, study, {**manifest, **s.method.fingerprint()}, problem, s.method
            )
            for s in submissions
            if s.method is not None
        }
        self.verdicts = Verdicts(config)
        self.bar = tqdm(unit="call", disable=no_bars(), dynamic_ncols=True)
        self._shown_at = 0.0

    def measure(self, digest: str, label: str) -> tuple[float, float]:
        """The loss (NaN if there is none) and the seconds of a file on an instance."""
        raise_if_stopped()
        submission = self._submissions[digest]
        if submission.method is None:
            self.verdicts.put_out(digest, submission.reason)
            return math.nan, 0.0
        measurements, values = self._measurements[digest], submission.method.complete({})
        call = measurements.read(values, label)
        if call is None:
            call = self._make(f"{submission.name}, {label}", submission.method, values, label)
            measurements.write(values, label, call)
        self.bar.update()
        return self.verdicts.judge(digest, call, label, call.seconds or 0.0)

    def _make(self, title: str, method: Method, values: Values, label: str) -> Measurement:
        def on_step(progress: Progress) -> None:
            raise_if_stopped()
            now = time.monotonic()
            if now - self._shown_at >= _REFRESH_S:
                self._shown_at = now
                self.bar.set_postfix_str(f"{title}: {progress.elapsed_s:.0f} s")

        instance = self._instances[label]
        call = measure(self._config, self._problem, method, values, instance, on_step)
        if isinstance(call, FailedCall):
            info(f"{title}: {call.reason}")
        elif self.bar.disable:
            info(f"{title}: loss {call.loss:.4f}, {call.seconds or 0.0:.1f} s")
        return call


def _leaderboard(halved: Halved, submissions: Sequence[Submission], calls: _Calls) -> Leaderboard:
    by_digest = {s.digest: s for s in submissions}
    first = submissions[0]
    places = []
    for contender in halved.contenders:
        digest = contender.candidate
        is_first = digest == first.digest
        places.append(
            Place(
                submission=by_digest[digest],
                contender=contender,
                loss=halved.loss(digest),
                difference=None if is_first else halved.difference(digest, first.digest),
                cost=calls.verdicts.cost(digest),
                reason=calls.verdicts.reason(digest) or "",
            )
        )
    return Leaderboard(tuple(places), first.name, tuple(halved.units))


def _place_json(place: Place) -> dict[str, Any]:
    difference = place.difference
    return {
        "name": place.submission.name,
        "digest": place.submission.digest,
        "loss": finite(place.loss.mean),
        "standard_error": finite(place.loss.standard_error),
        "difference": None if difference is None else finite(difference.mean),
        "low": None if difference is None else finite(difference.low),
        "high": None if difference is None else finite(difference.high),
        "calls": len(place.contender.losses),
        "longest_call_s": place.contender.longest_s,
        "cost": place.cost,
        "left": None if place.contender.left == Left.FINALIST else str(place.contender.left),
        "reason": place.reason or None,
    }
