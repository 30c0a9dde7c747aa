"""The candidates of a confirmation, with their losses in the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..analysis.intervals import Interval, interval, unit_means, units_of
from ..errors import UserError
from ..export.selection import read_recipe
from ..problem.base import InvalidValuesError, Method, Values, digest_of
from ..study.config import StudyConfig
from ..study.confirmation import BASELINE, title
from ..trial.ranking import best_measured
from ..trial.recipe import recipe_of
from ..trial.record import read_trial
from ..trial.run import Run, runs_of


@dataclass(frozen=True)
class Candidate:
    """A recipe to measure again, with the trial that ran it, if there is one."""

    name: str  # "default", "best 3" (of the search) or a file's name
    recipe: Values  # complete values
    trial: Run | None = None

    @property
    def digest(self) -> str:
        return digest_of(self.recipe)

    @property
    def number(self) -> int | None:
        """Number of its trial."""
        return None if self.trial is None else self.trial.number

    @property
    def title(self) -> str:
        """Name and trial, for people."""
        return title(self.name, self.number)

    @property
    def search_losses(self) -> dict[str, float]:
        """Losses in the search, by instance; empty without a trial."""
        calls = self.trial.counted if self.trial else ()
        return {call.instance: call.loss for call in calls}


def choose_candidates(
    config: StudyConfig, study: optuna.Study, top: int, files: Sequence[Path]
) -> list[Candidate]:
    """The default recipe with the study's fixed values, the ``top`` best trials, and recipe files.

    Equal recipes are one candidate under the first of their names. Trials of other programs are
    logged and ignored.

    Raises:
        UserError: a file is not a recipe, a trial's recipe is of another version, or the default
            recipe is the only candidate.
    """
    trials = study.get_trials(deepcopy=False)
    method = config.load_method()
    ran = _trials_by_recipe(trials, method)
    proposed = [(BASELINE, method.complete(config.fixed))]
    for rank, trial in enumerate(islice(best_measured(trials), top), start=1):
        proposed.append((f"best {rank}", _read(trial, method)))
    proposed += [(path.name, dict(read_recipe(path, method).recipe)) for path in files]
    candidates: dict[str, Candidate] = {}
    for name, recipe in proposed:
        digest = digest_of(recipe)
        candidates.setdefault(digest, Candidate(name, recipe, ran.get(digest)))
    if len(candidates) == 1:
        raise UserError(
            f"study {study.study_name} has no complete, feasible trial but the default recipe's; "
            "run more, raise --top, or name a recipe by --recipe"
        )
    return list(candidates.values())


def search_difference(candidate: Candidate, baseline: Candidate) -> Interval | None:
    """Difference of losses in the search, on the instances of both; None if they share none."""
    theirs = baseline.search_losses
    differences = {i: x - theirs[i] for i, x in candidate.search_losses.items() if i in theirs}
    if not differences:
        return None
    units = units_of({label: label.partition("/")[0] for label in differences})
    return interval(list(unit_means(differences, units).values()))


def _read(trial: FrozenTrial, method: Method) -> dict[str, Any]:
    try:
        return recipe_of(read_trial(trial), method)
    except InvalidValuesError as error:
        raise UserError(
            f"trial {trial.number} has a recipe of another version ({error}); "
            "run the version that made the study"
        ) from error


def _trials_by_recipe(trials: Sequence[FrozenTrial], method: Method) -> dict[str, Run]:
    """For each recipe's digest one trial: a complete one, else the one with most instances."""
    found: dict[str, Run] = {}
    for run in runs_of(trials):
        recipe = run.recipe(method)
        if recipe is None or not run.state.is_finished() or not run.calls:
            continue
        digest = digest_of(recipe)
        known = found.get(digest)
        if known is None or _weight(run) > _weight(known):
            found[digest] = run
    return found


def _weight(run: Run) -> tuple[bool, int, float]:
    # Of two complete trials the better one, because the best trials are named by it.
    complete = run.state == TrialState.COMPLETE
    loss = run.loss if complete and run.loss is not None else 0.0
    return complete, len(run.calls), -loss
