"""Calls outside of trials: make one, and store it so that it is made only once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import optuna

from ..clock.plan import Plan
from ..errors import UserError
from ..problem.base import Instance, Method, Problem, Progress, Values, digest_of, short_digest
from ..problem.measure import HungError
from ..problem.measure import measure as measure_calls
from ..storage.rdb import StudyStorage
from ..study.config import StudyConfig
from ..study.confirmation import read_confirmed_call, write_confirmed_call
from ..trial.calls import CallKeys, KeptCalls, mark_of
from ..trial.outcome import ending_of
from ..trial.record import Call, FailedCall
from ..trial.stored import finite

Measurement = Call | FailedCall


def table_seed(config: StudyConfig) -> int:
    """Seed of a confirmation's noise. It differs from the search's, which favours its best."""
    return config.estimator.seed + 1


def measure(
    config: StudyConfig,
    problem: Problem,
    method: Method,
    recipe: Values,
    instance: Instance,
    on_step: Callable[[Progress], None],
    plan: Plan | None = None,
) -> Measurement:
    """Make one timed call.

    Args:
        plan: plan of the call; None: it runs by wall clock.

    Returns:
        A failed call if it was stopped at the limit, ran out of memory, or its loss is not finite.

    Raises:
        UserError: a call by its plan took many times the limit.
    """
    seconds = 0.0

    def step(_: int, progress: Progress) -> None:
        nonlocal seconds
        seconds = progress.elapsed_s
        on_step(progress)

    try:
        limit_s, seed, steps = config.limit_s, table_seed(config), None
        if plan is not None:
            # At twice the reference machine's speed a call makes twice the steps, so it is longer.
            steps, limit_s = [plan.steps], max(limit_s, plan.full_speed_s)
        (called,) = measure_calls(
            method, problem, recipe, [instance], limit_s, step, seed, steps=steps
        )
    except HungError as error:
        raise UserError(str(error)) from error
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
        steps_wanted=called.steps_wanted,
        cost=finite(called.evaluation.cost),
    )


class Measurements:
    """A study's stored calls of confirmations.

    Older databases have them as attributes of the study, each with a digest of what it depends on
    beside the recipe: code, drawings, network, noise. Calls with another digest are not read. If
    the table of calls can't be created, calls are still stored as attributes.
    """

    def __init__(
        self,
        config: StudyConfig,
        study: optuna.Study,
        manifest: Mapping[str, str],
        problem: Problem,
        method: Method,
    ) -> None:
        storage = study._storage
        assert isinstance(storage, StudyStorage)
        self._study = study
        keys = CallKeys(method, problem, manifest, table_seed(config))
        self._kept = KeptCalls(storage, study._study_id, keys)
        common = [manifest[entry] for entry in ("code", "data", "torch") if entry in manifest]
        common += [config.estimator.model_dump_json(), str(table_seed(config))]
        self._instances = {i.label: i for i in problem.instances(held_out=True)}
        self._basis = {
            label: short_digest(json.dumps([*common, *problem.identity(instance)]))
            for label, instance in self._instances.items()
        }

    def read(self, recipe: Values, label: str, plan: Plan | None = None) -> Measurement | None:
        """Read the stored call of a recipe on an instance; None if there is none.

        Args:
            plan: plan of the call; None: it ran by wall clock.
        """
        return self._known(recipe, [label], plan).get(label)

    def count(self, asked: Iterable[tuple[Values, str, Plan | None]]) -> int:
        """How many of these calls, given by recipe, instance and plan, are stored."""
        together: dict[tuple[str, str], tuple[Values, Plan | None, list[str]]] = {}
        for recipe, label, plan in asked:
            key = digest_of(recipe), mark_of(plan)
            together.setdefault(key, (recipe, plan, []))[2].append(label)
        return sum(len(self._known(r, labels, plan)) for r, plan, labels in together.values())

    def _known(
        self, recipe: Values, labels: Sequence[str], plan: Plan | None
    ) -> dict[str, Measurement]:
        instances = [self._instances[label] for label in labels]
        kept = self._kept.of(recipe, instances, mark_of(plan))
        known = {label: call.outcome for label, call in kept.items()}
        missing = [label for label in labels if label not in known]
        attrs = self._study.user_attrs if missing else {}
        for label in missing:
            found = read_confirmed_call(attrs, digest_of(recipe), _place(label, plan))
            if isinstance(found, Call | FailedCall) and found.basis == self._basis[label]:
                known[label] = found
        return known

    def write(
        self, recipe: Values, label: str, measured: Measurement, plan: Plan | None = None
    ) -> None:
        """Store a call, replacing an earlier one."""
        if self._kept.is_on:
            instance, clock = self._instances[label], mark_of(plan)
            self._kept.keep(self._kept.row(recipe, instance, measured, trial=None, clock=clock))
        else:
            based = measured.model_copy(update={"basis": self._basis[label]})
            write_confirmed_call(self._study, digest_of(recipe), _place(label, plan), based)


def _place(label: str, plan: Plan | None) -> str:
    """The end of an attribute's name: the label, and the plan unless the call ran by wall clock."""
    return label if plan is None else f"{label} {plan.mark}"
