"""One call outside of a trial, and where its outcome is stored so that it is made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from ..problem.base import Instance, Problem, Progress, Values, digest_of, short_digest
from ..problem.measure import measure as measure_calls
from ..study.config import StudyConfig
from ..study.confirmation import read_confirmed_call, write_confirmed_call
from ..trial.outcome import ending_of
from ..trial.record import Call, FailedCall
from ..trial.stored import finite

Measurement = Call | FailedCall


def table_seed(config: StudyConfig) -> int:
    """Seed of the table of times and noises: not the search's, whose best recipes it favoured."""
    return config.estimator.seed + 1


def measure(
    config: StudyConfig,
    problem: Problem,
    recipe: Values,
    instance: Instance,
    on_step: Callable[[Progress], None],
) -> Measurement:
    """Make one timed call.

    Returns:
        A failed call if it was stopped at the limit, lacked memory or its loss is not finite.
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
        return FailedCall(loss=None, seconds=round(seconds, 3), reason=ending.reason)
    return Call(
        instance=instance.label,
        loss=called.evaluation.loss,
        standard_error=finite(called.evaluation.standard_error),
        seconds=called.seconds,
        steps=called.steps,
        cost=finite(called.evaluation.cost),
    )


class Measurements:
    """Calls in a study's attributes.

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
            instance.label: short_digest(json.dumps([*common, *problem.identity(instance)]))
            for instance in problem.instances(held_out=True)
        }

    def read(self, recipe: Values, label: str) -> Measurement | None:
        """The call of a recipe on an instance, whoever made it; None: there is none."""
        return self._find(self._study.user_attrs, recipe, label)

    def count(self, recipes: Sequence[Values]) -> int:
        """How many calls of these recipes there are."""
        attrs = self._study.user_attrs
        return sum(
            self._find(attrs, r, label) is not None for r in recipes for label in self._basis
        )

    def _find(self, attrs: Mapping[str, Any], recipe: Values, label: str) -> Measurement | None:
        found = read_confirmed_call(attrs, digest_of(recipe), label)
        if isinstance(found, Call | FailedCall) and found.basis == self._basis[label]:
            return found
        return None  # there is none, or it is to be made again

    def write(self, recipe: Values, label: str, measured: Measurement) -> None:
        """Store a call, in the place of an earlier one."""
        based = measured.model_copy(update={"basis": self._basis[label]})
        write_confirmed_call(self._study, digest_of(recipe), label, based)
