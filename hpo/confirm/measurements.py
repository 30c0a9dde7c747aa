"""One call outside of a trial, and where its outcome is stored so that it is made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import optuna

from ..problem.base import Instance, Problem, Progress, Values, digest_of, short_digest
from ..problem.measure import measure as measure_calls
from ..storage.rdb import StudyStorage
from ..study.config import StudyConfig
from ..study.confirmation import read_confirmed_call, write_confirmed_call
from ..trial.calls import CallKeys, KeptCalls
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
    """Calls of confirmations that a study's database keeps.

    Older databases have them as attributes of the study, each with a digest of what it depends on
    beside the recipe: code, drawings, network, table. Those of another digest are not read. Where
    the table of calls can't be made, they still go there.
    """

    def __init__(
        self,
        config: StudyConfig,
        study: optuna.Study,
        manifest: Mapping[str, str],
        problem: Problem,
    ) -> None:
        storage = study._storage
        assert isinstance(storage, StudyStorage)
        self._study = study
        keys = CallKeys(config.load_method(), problem, manifest, table_seed(config))
        self._kept = KeptCalls(storage, study._study_id, keys)
        common = [manifest[entry] for entry in ("code", "data", "torch") if entry in manifest]
        common += [config.estimator.model_dump_json(), str(table_seed(config))]
        self._instances = {i.label: i for i in problem.instances(held_out=True)}
        self._basis = {
            label: short_digest(json.dumps([*common, *problem.identity(instance)]))
            for label, instance in self._instances.items()
        }

    def read(self, recipe: Values, label: str) -> Measurement | None:
        """The call of a recipe on an instance, whoever made it; None: there is none."""
        return self._known(recipe, [label]).get(label)

    def count(self, recipes: Sequence[Values]) -> int:
        """How many calls of these recipes there are."""
        return sum(len(self._known(recipe, list(self._instances))) for recipe in recipes)

    def _known(self, recipe: Values, labels: Sequence[str]) -> dict[str, Measurement]:
        kept = self._kept.of(recipe, [self._instances[label] for label in labels])
        known = {label: call.outcome for label, call in kept.items()}
        missing = [label for label in labels if label not in known]
        attrs = self._study.user_attrs if missing else {}
        for label in missing:
            found = read_confirmed_call(attrs, digest_of(recipe), label)
            if isinstance(found, Call | FailedCall) and found.basis == self._basis[label]:
                known[label] = found
        return known

    def write(self, recipe: Values, label: str, measured: Measurement) -> None:
        """Keep a call, in the place of an earlier one."""
        if self._kept.is_on:
            instance = self._instances[label]
            self._kept.keep(self._kept.row(recipe, instance, measured, trial=None))
        else:
            based = measured.model_copy(update={"basis": self._basis[label]})
            write_confirmed_call(self._study, digest_of(recipe), label, based)
