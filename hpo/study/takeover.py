"""What a new study takes over from one that differs in the search space alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ..errors import UserError
from ..formatting import counted
from ..problem.base import InvalidValuesError, Method, Values, digest_of
from ..storage.calls import CallRow
from ..storage.transactions import Taken, TakenTrial, Writes
from ..trial.recipe import recipe_of
from ..trial.record import read_trial
from .config import StudyConfig
from .manifest import first_difference
from .space import Parameter

TAKEN_FROM_KEY = "taken_from"  # user attribute of a trial: where it ran
_FILE_LINK = "artifacts:"  # Optuna's prefix; files stay with the study that made them
_SPACE = "space"  # the manifest's entry that may differ


@dataclass(frozen=True)
class Takeover:
    """What is taken, and what is not.

    ``outside``: finished trials whose recipes the new space can't give.
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
    """The trials of another study that this one's space could have made, and their calls.

    Failed trials say nothing of their recipes and stay where they are, and so do those that run.

    Args:
        manifest: this study's.
        other: name of the other study.
        trials: all that it has.
        calls: all that it keeps.

    Raises:
        UserError: the other study measured something else.
    """
    entry = first_difference(its_manifest, manifest, but=(_SPACE,))
    if entry is not None:
        raise UserError(
            f"start_from: study {other} was made with other {entry} ({its_manifest.get(entry)} "
            f'there, {manifest.get(entry)} here), and trials = "all" takes over what differs in '
            f"the space alone; leave it out to begin with the best recipes"
        )
    method = config.load_method()
    taken: list[TakenTrial] = []
    numbers: dict[int, int] = {}  # the other's to this study's
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
        taken.append(_taken_trial(trial, params, config.space, f"{other}/{trial.number}"))
    rows = [
        replace(row, trial=None if row.trial is None else numbers.get(row.trial))
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
    """Parameters of a space by which a trial would run this recipe; None: there are none.

    Args:
        recipe: complete.
        params: of the trial that ran it, in another space: switches are no values of a recipe.
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
    """The states of all switches: those that the trial had, or each that they may have had."""
    names = [name for name in space if name not in method.fields]
    states = [(params[n],) if isinstance(params.get(n), bool) else (False, True) for n in names]
    return (dict(zip(names, state, strict=True)) for state in itertools.product(*states))


def _taken_trial(
    trial: FrozenTrial, params: Mapping[str, Any], space: Mapping[str, Parameter], where: str
) -> TakenTrial:
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
    links = {k: v for k, v in trial.system_attrs.items() if not k.startswith(_FILE_LINK)}
    writes = Writes(
        params=internal,
        user_attrs=attrs,
        system_attrs=links,
        reports=dict(trial.intermediate_values),
        state=trial.state,
        values=trial.values,
    )
    return TakenTrial(writes, _utc(trial.datetime_start), _utc(trial.datetime_complete))


def _utc(moment: datetime | None) -> datetime | None:
    """Optuna shows naive local time, and stores naive UTC."""
    return moment and moment.astimezone(UTC).replace(tzinfo=None)
