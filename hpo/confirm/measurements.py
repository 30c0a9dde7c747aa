"""One call outside of a trial, and where its outcome is kept so that it is made once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from ..problem.base import Instance, Problem, Progress, Values, digest_of
from ..problem.measure import measure as measure_calls
from ..study.config import StudyConfig
from ..study.confirmation import CALLS_PREFIX
from ..trial.outcome import ending_of


def table_seed(config: StudyConfig) -> int:
    """Of the table of times and noises: not the search's, whose best recipes it favoured."""
    return config.estimator.seed + 1


def measure(
    config: StudyConfig,
    problem: Problem,
    recipe: Values,
    instance: Instance,
    on_step: Callable[[Progress], None],
) -> dict[str, Any]:
    """One timed call: loss with standard error, seconds, steps, networks, the cost of an answer.

    A call that is stopped at the limit, lacks memory or whose loss is not finite has the loss
    None, and a reason.
    """
    seconds = 0.0

    def step(_: int, progress: Progress) -> None:
        nonlocal seconds
        seconds = progress.elapsed_s
        on_step(progress)

    try:
        method, limit_s, seed = config.load_method(), config.limit_s, table_seed(config)
        (called,) = measure_calls(method, problem, recipe, [instance], limit_s, step, seed)
    except Exception as error:
        ending = ending_of(error)
        if not ending.outcome.is_recipes_fault:
            raise
        return {"loss": None, "seconds": round(seconds, 3), "reason": ending.reason}
    return {
        "loss": called.evaluation.loss,
        "standard_error": called.evaluation.standard_error,
        "seconds": called.seconds,
        "steps": called.steps,
        "cost": called.evaluation.cost,
    }


class Kept:
    """Measurements in a study's attributes, one each, so that two processes can't lose any.

    Each carries a digest of what it depends on beside the recipe: code, drawings, network, table.
    Those of another digest are not read.
    """

    def __init__(
        self,
        config: StudyConfig,
        study: optuna.Study,
        manifest: Mapping[str, str],
        problem: Problem,
    ) -> None:
        self._study = study
        common = [manifest[entry] for entry in ("code", "data", "torch") if entry in manifest]
        common += [config.estimator.model_dump_json(), str(table_seed(config))]
        self._basis = {
            instance.label: _digest([*common, *problem.identity(instance)])
            for instance in problem.instances(held_out=True)
        }

    def read(self, recipe: Values, label: str) -> dict[str, Any] | None:
        """The measurement of a recipe on an instance, whoever made it; None: there is none."""
        return self._find(self._study.user_attrs, recipe, label)

    def count(self, recipes: Sequence[Values]) -> int:
        """How many measurements of these recipes there are."""
        attrs = self._study.user_attrs
        return sum(
            self._find(attrs, r, label) is not None for r in recipes for label in self._basis
        )

    def _find(self, attrs: Mapping[str, Any], recipe: Values, label: str) -> dict[str, Any] | None:
        found: dict[str, Any] = attrs.get(_key(recipe, label), {})
        return found if found.get("basis") == self._basis[label] else None

    def write(self, recipe: Values, label: str, measured: Mapping[str, Any]) -> None:
        self._study.set_user_attr(_key(recipe, label), {**measured, "basis": self._basis[label]})


def _key(recipe: Values, label: str) -> str:
    return f"{CALLS_PREFIX}{digest_of(recipe)}:{label}"


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
