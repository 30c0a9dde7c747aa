"""The recipes that meet at the end of a search, and how they did in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..analysis.intervals import Interval, interval, unit_means, units_of
from ..errors import UserError
from ..export.selection import read_recipe
from ..problem.base import Method, Values, digest_of
from ..study.config import StudyConfig
from ..study.confirmation import BASELINE, title
from ..trial.ranking import best_trials
from ..trial.recipe import recipe_of


@dataclass(frozen=True)
class Candidate:
    """A recipe that is measured again, and the trial that ran it, if one did."""

    name: str  # "default", "best 3" (of the search) or a file's name
    recipe: Values  # complete
    trial: FrozenTrial | None = None

    @property
    def digest(self) -> str:
        return digest_of(self.recipe)

    @property
    def number(self) -> int | None:
        """Of its trial."""
        return None if self.trial is None else self.trial.number

    @property
    def title(self) -> str:
        """Its name with its trial, for people."""
        return title(self.name, self.number)

    @property
    def search_losses(self) -> dict[str, float]:
        """Its losses in the search, by instance; none without a trial."""
        calls = self.trial.user_attrs["instances"] if self.trial else ()
        return {call["instance"]: call["loss"] for call in calls}


def choose_candidates(
    config: StudyConfig, study: optuna.Study, top: int, files: Sequence[Path]
) -> list[Candidate]:
    """The default recipe with the study's fixed values, the ``top`` best trials, and the files'.

    Equal recipes are one candidate, called by the first of their names.

    Raises:
        UserError: a file holds no recipe, a trial's recipe is of another version, or there is
            nothing but the default.
    """
    trials = study.get_trials(deepcopy=False)
    method = config.load_method()
    ran = _trials_by_recipe(trials, method)
    proposed = [(BASELINE, method.complete(config.fixed))]
    for rank, trial in enumerate(best_trials(trials, top), start=1):
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
    """``candidate`` minus ``baseline`` in the search, on the instances that both were measured on.

    None when there are none.
    """
    theirs = baseline.search_losses
    differences = {i: x - theirs[i] for i, x in candidate.search_losses.items() if i in theirs}
    if not differences:
        return None
    units = units_of({label: label.partition("/")[0] for label in differences})
    return interval(list(unit_means(differences, units).values()))


def _read(trial: FrozenTrial, method: Method) -> dict[str, Any]:
    try:
        return recipe_of(trial, method)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"trial {trial.number} has a recipe of another version ({error}); "
            "run the version that made the study"
        ) from error


def _trials_by_recipe(trials: Sequence[FrozenTrial], method: Method) -> dict[str, FrozenTrial]:
    """Of each recipe's digest the trial that says most: a complete one, else the longest."""
    found: dict[str, FrozenTrial] = {}
    for trial in trials:
        if not trial.state.is_finished() or not trial.user_attrs.get("instances"):
            continue
        try:
            digest = digest_of(recipe_of(trial, method))
        except (KeyError, TypeError, ValueError):
            continue
        if digest not in found or _said(trial) > _said(found[digest]):
            found[digest] = trial
    return found


def _said(trial: FrozenTrial) -> tuple[Any, ...]:
    # The better of two complete ones, as the best trials are called by it.
    complete = trial.state == TrialState.COMPLETE
    value = trial.value if complete and trial.value is not None else 0.0
    return complete, len(trial.user_attrs["instances"]), -value
