"""Take over trials and calls of a study with another search space or fewer instances."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ..artifacts.uploads import ARTIFACT_PREFIX
from ..errors import UserError
from ..formatting import counted
from ..problem.base import InvalidValuesError, Method, Values, digest_of
from ..storage.calls import CallRow
from ..storage.transactions import Taken, TakenTrial, Writes
from ..trial.calls import CallKey, read_row, row_of
from ..trial.outcome import Outcome
from ..trial.recipe import recipe_of
from ..trial.record import TrialRecord, mean_loss, read_trial
from ..trial.stored import Remark
from .config import StudyConfig
from .inclusion import MAY_GROW, included, labels_of, looks_of
from .manifest import first_difference
from .space import Parameter

TAKEN_FROM_KEY = "taken_from"  # user attribute of a trial: where it was run
_SPACE = "space"  # the entry of the manifest that may differ


@dataclass(frozen=True)
class Takeover:
    """The trials and calls to take over.

    ``outside`` counts finished trials whose recipes the new space can't give.
    """

    study: str
    taken: Taken
    outside: int

    def __str__(self) -> str:
        trials, calls = len(self.taken.trials), len(self.taken.calls)
        return (
            f"taken over from study {self.study}: {counted(trials, 'trial')} and "
            f"{counted(calls, 'call')}; outside of this space: {counted(self.outside, 'trial')}"
        )


def take_over(
    config: StudyConfig,
    manifest: Mapping[str, str],
    other: str,
    its_manifest: Mapping[str, Any],
    trials: Sequence[FrozenTrial],
    calls: Sequence[CallRow],
) -> Takeover:
    """Choose the trials of another study that this study's space can give, and their calls.

    Failed and running trials are left out.  If this study has more instances, complete trials
    become pruned ones, because they have not met all of them.

    Args:
        manifest: manifest of this study.
        other: name of the other study.
        trials: all its trials.
        calls: all its stored calls.

    Raises:
        UserError: the other study measured something else.
    """
    names, labels = included(its_manifest, manifest), labels_of(manifest)
    may_differ = (_SPACE,) if names is None else (_SPACE, *MAY_GROW)
    entry = first_difference(its_manifest, manifest, but=may_differ)
    if entry is not None:
        raise UserError(
            f"start_from: study {other} was made with other {entry} ({its_manifest.get(entry)} "
            f'there, {manifest.get(entry)} here), and trials = "all" takes over what differs in '
            f"the space, or measured a part of this study's instances; leave it out to begin with "
            f"the best recipes"
        )
    if names == {label: label for label in labels}:
        names = None  # nothing has to be renamed, and no instance is missing
    method = config.load_method()
    taken: list[TakenTrial] = []
    numbers: dict[int, int] = {}  # from the other study's to this study's
    recipes: set[str] = set()
    outside = 0
    for trial in sorted(trials, key=lambda t: t.number):
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            continue
        try:
            recipe = recipe_of(read_trial(trial), method)
        except InvalidValuesError:
            outside += 1
            continue
        params = parameters_for(recipe, trial.params, config.space, config.fixed, method)
        if params is None:
            outside += 1
            continue
        numbers[trial.number] = len(taken)
        recipes.add(digest_of(recipe))
        writes = _writes(trial, params, config.space, f"{other}/{trial.number}")
        if names is not None:
            _fit_to_instances(writes, read_trial(trial), names, labels, looks_of(manifest))
        times = _utc(trial.datetime_start), _utc(trial.datetime_complete)
        taken.append(TakenTrial(writes, *times))
    rows = [
        replace(
            _renamed(row, names or {}),
            trial=None if row.trial is None else numbers.get(row.trial),
        )
        for row in calls
        if row.recipe in recipes
    ]
    return Takeover(other, Taken(taken, rows), outside)


def parameters_for(
    recipe: Values,
    params: Mapping[str, Any],
    space: Mapping[str, Parameter],
    fixed: Mapping[str, Any],
    method: Method,
) -> dict[str, Any] | None:
    """Parameters in a space that give this recipe; None if there are none.

    Args:
        recipe: complete values.
        params: parameters, in another space, of the trial that ran the recipe. Switches are read
            from here, because they are not values of a recipe.
    """
    for switches in _switches(params, space, method):
        found: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for name, parameter in space.items():
            if any(values.get(other) != wanted for other, wanted in parameter.when.items()):
                continue
            values[name] = switches[name] if name in switches else recipe[name]
            found[name] = parameter.parameter(values[name])
        chosen = {name: value for name, value in values.items() if name in method.fields}
        try:
            if None not in found.values() and method.complete({**fixed, **chosen}) == dict(recipe):
                return found
        except InvalidValuesError:
            continue
    return None


def _switches(
    params: Mapping[str, Any], space: Mapping[str, Parameter], method: Method
) -> Iterator[dict[str, Any]]:
    """Possible states of all switches: the trial's own if known, else every combination."""
    names = [name for name in space if name not in method.fields]
    states = [(params[n],) if isinstance(params.get(n), bool) else (False, True) for n in names]
    return (dict(zip(names, state, strict=True)) for state in itertools.product(*states))


def _writes(
    trial: FrozenTrial, params: Mapping[str, Any], space: Mapping[str, Parameter], where: str
) -> Writes:
    internal = {}
    for name, value in params.items():
        distribution = space[name].distribution()
        internal[name] = (distribution.to_internal_repr(value), distribution)
    attrs = dict(trial.user_attrs) | {TAKEN_FROM_KEY: where}
    calls = attrs.get("instances")
    if isinstance(calls, list):
        attrs["instances"] = [
            {**call, "picture": None} if isinstance(call, dict) else call for call in calls
        ]
    links = {k: v for k, v in trial.system_attrs.items() if not k.startswith(ARTIFACT_PREFIX)}
    return Writes(
        params=internal,
        user_attrs=attrs,
        system_attrs=links,
        reports=dict(trial.intermediate_values),
        state=trial.state,
        values=trial.values,
    )


def _fit_to_instances(
    writes: Writes,
    record: TrialRecord,
    names: Mapping[str, str],
    labels: Sequence[str],
    looks: int,
) -> None:
    """Adapt a trial's record to this study's instances.

    It gets the calls on the first instances, up to the first one that the trial did not meet.
    Later calls are only in the table of calls.

    Args:
        names: this study's labels, by those of the other study.
        labels: labels of this study's instances, in order.
        looks: how many of the first instances are looks at a lower speed.
    """
    found = {names.get(call.instance): call for call in record.instances}
    met = list(itertools.takewhile(found.__contains__, labels))
    calls = [found[n].model_copy(update={"instance": n, "picture": None}) for n in met]
    writes.reports.clear()
    writes.reports.update({k: mean_loss(calls[:k]) for k in range(1, len(calls) + 1)})
    if calls:
        writes.user_attrs.update(TrialRecord.of_calls(calls, looks).to_json())
    else:
        writes.user_attrs.pop("instances", None)
    if writes.state == TrialState.COMPLETE and len(calls) < len(labels):
        writes.state = TrialState.PRUNED
        reason = f"taken over with {len(calls)} of {len(labels)} instances"
        writes.user_attrs.update({"outcome": Outcome.PRUNED.value, "reason": reason})


def _renamed(row: CallRow, names: Mapping[str, str]) -> CallRow:
    """A call with this study's label of its instance; a row that can't be read stays as it is."""
    label = names.get(row.instance, row.instance)
    outcome = read_row(row)
    if label == row.instance or isinstance(outcome, Remark):
        return row
    return row_of(CallKey(row.recipe, label, row.basis), row.study_id, row.trial, outcome)


def _utc(moment: datetime | None) -> datetime | None:
    """Naive UTC, which Optuna stores, from naive local time, which it shows."""
    return moment and moment.astimezone(UTC).replace(tzinfo=None)
