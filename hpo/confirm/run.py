"""The work of `hpo.confirm`: calls that are made once, round by round, and their progress."""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from tqdm import tqdm

from ..analysis.intervals import units_of
from ..errors import EXIT_FAILED
from ..problem.base import Problem, Progress
from ..process.devices import n_cores
from ..process.logging import info, warn
from ..process.signals import raise_if_stopped
from ..study.config import StudyConfig
from ..study.confirmation import CONFIRMED_KEY, Left
from ..study.manifest import MANIFEST_KEY, check_manifest, make_manifest
from .candidates import Candidate, choose_candidates
from .halving import Standing, block_ends, halve, most_calls
from .measurements import Kept, measure, table_seed
from .options import ConfirmOptions
from .result import result_of, to_text

_REFRESH_S = 1.0


def confirm(config: StudyConfig, study: optuna.Study, options: ConfirmOptions) -> int:
    """Measure, name the winner, store and print the result; returns the exit code.

    Args:
        options: those of `hpo.confirm`.

    Raises:
        UserError: the study, a recipe, the data or what ``[confirm]`` asks for is not usable.
        StopError: the process was asked to stop; finished calls are kept.
    """
    candidates = choose_candidates(config, study, options.top, options.recipe)
    config.load_method().prepare(options.device, options.threads or n_cores())
    problem = config.load_problem(options.data)
    manifest = make_manifest(config, problem)
    _check_same_measure(study, manifest)
    instances = problem.instances(held_out=True)
    kept = Kept(config, study, manifest, problem)
    with _Calls(config, candidates, problem, kept, options.rounds) as running:
        halved = halve(
            [c.digest for c in candidates],
            candidates[0].digest,
            units_of({i.label: i.rune for i in instances}),
            running.measure,
            rounds=options.rounds,
            feasible_s=config.feasible_s,
            order=random.Random(),
            on_round=running.tell,
        )
    if not halved.finalists:
        print(
            "failed: no candidate kept the limits; "
            + "; ".join(f"{c.name}: {why}" for c in candidates if (why := running.why(c))),
            file=sys.stderr,
        )
        return EXIT_FAILED
    result = {
        **result_of(
            halved,
            candidates,
            reasons={c.digest: running.why(c) for c in candidates},
            costs={c.digest: running.cost(c) for c in candidates},
        ),
        "rounds": block_ends(len(instances), options.rounds),
        "estimator": {**config.estimator.model_dump(), "seed": table_seed(config)},
        "feasible_s": config.feasible_s,
        "code": manifest["code"],
    }
    study.set_user_attr(CONFIRMED_KEY, result)
    print(json.dumps(result, indent=2, ensure_ascii=False) if options.json else to_text(result))
    return 0


def _check_same_measure(study: optuna.Study, mine: Mapping[str, str]) -> None:
    """The drawings and networks are the study's; other code is borne, and told.

    Raises:
        UserError: something else differs; says what.
    """
    theirs = study.user_attrs.get(MANIFEST_KEY, {}).get("code")
    if theirs is not None and theirs != mine["code"]:
        warn(
            f"the search ran with other code ({theirs}, and this is {mine['code']}): all "
            "candidates are measured with this one, but losses of the search are of the other"
        )
    check_manifest(study, {entry: value for entry, value in mine.items() if entry != "code"})


class _Calls:
    """Makes the calls that are asked for, unless they are kept already, and shows how far it is."""

    def __init__(
        self,
        config: StudyConfig,
        candidates: Sequence[Candidate],
        problem: Problem,
        kept: Kept,
        rounds: int,
    ) -> None:
        self._config, self._kept, self._rounds = config, kept, rounds
        self._candidates = {c.digest: c for c in candidates}
        self._problem = problem
        instances = problem.instances(held_out=True)
        self._instances = {i.label: i for i in instances}
        self._reasons: dict[str, str] = {}
        self._costs: dict[str, list[float]] = {}
        calls = most_calls(len(candidates) - 1, len(instances), rounds)
        known = kept.count([c.recipe for c in candidates])
        info(
            f"{len(candidates)} candidates, {len(instances)} instances: at most {calls} calls"
            + _duration(calls - min(known, calls), candidates)
            + (f"; {known} are known" if known else "")
        )
        # `disable=None` is tqdm's word for: unless this is a terminal.
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
        measured = self._kept.read(candidate.recipe, label)
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
            self._kept.write(candidate.recipe, label, measured)
            if self._bar.disable:
                loss = "no loss" if measured["loss"] is None else f"loss {measured['loss']:.4f}"
                info(f"{title}: {loss}, {measured['seconds']:.1f} s")
        self._bar.update()
        loss, seconds = measured["loss"], float(measured["seconds"])
        if loss is None:
            self._reasons[digest] = f"{label}: {measured['reason']}"
        elif seconds > self._config.feasible_s:
            allowed = f"{self._config.feasible_s:g} are allowed"
            self._reasons[digest] = f"{label}: a call took {seconds:.1f} s; {allowed}"
        elif (why := self._too_dear(candidate, measured)) is not None:
            self._reasons[digest] = f"{label}: {why}"
            return math.nan, seconds  # which puts it out of the race
        return (math.nan if loss is None else float(loss)), seconds

    def _too_dear(self, candidate: Candidate, measured: Mapping[str, Any]) -> str | None:
        """Why an answer costs too much, by the mean of the candidate's calls; None: it does not."""
        if measured.get("cost") is not None:
            self._costs.setdefault(candidate.digest, []).append(measured["cost"])
        cost, allowed = self.cost(candidate), self._config.limits.cost
        if cost is None or allowed is None or cost <= allowed:
            return None
        return f"an answer costs {cost:.2f} of the plain network's; {allowed:g} are allowed"

    def cost(self, candidate: Candidate) -> float | None:
        """CPU time of an answer over the plain network's; None: not known."""
        costs = self._costs.get(candidate.digest)
        return statistics.fmean(costs) if costs else None

    def why(self, candidate: Candidate) -> str | None:
        """Why a candidate is infeasible; None: it is not."""
        return self._reasons.get(candidate.digest)

    def tell(self, number: int, standings: Sequence[Standing]) -> None:
        """Say how a round ended."""
        running = [s for s in standings if s.left == Left.FINALIST]
        left = [s for s in standings if s.left != Left.FINALIST and s.rounds == number - 1]
        parts = [f"{len(running)} of {len(running) + len(left)} candidates go on"]
        for how in (Left.BEHIND, Left.TIED, Left.INFEASIBLE):
            names = [self._candidates[s.candidate].title for s in left if s.left == how]
            parts += [f"{how}: {', '.join(names)}"] if names else []
        last = number == len(block_ends(len(self._instances), self._rounds))
        if not last or left:
            info(f"round {number}: {'; '.join(parts)}")
        n, n_instances = len(self._candidates) - 1, len(self._instances)
        self._bar.total = self._bar.n + most_calls(
            n, n_instances, self._rounds, number, max(0, len(running) - 1)
        )
        self._bar.set_description_str(f"round {number if last else number + 1}")


def _duration(calls: int, candidates: Sequence[Candidate]) -> str:
    """How long so many calls take, if they are as long as they were in the search."""
    known = [c.trial.user_attrs.get("longest_call_s") for c in candidates if c.trial]
    seconds = [s for s in known if s is not None]
    if not seconds or not calls:
        return ""
    return f", about {max(1.0, calls * statistics.median(seconds) / 60):.0f} min"
