"""Choose the recipe to export, and describe where it comes from."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from ..errors import UserError
from ..formatting import counted
from ..problem.base import Claim, InvalidValuesError, Method, Values, digest_of
from ..study.confirmation import CONFIRMED_KEY, Confirmation, read_confirmation
from ..trial.ranking import best_measured
from ..trial.recipe import recipe_of
from ..trial.record import mean_loss
from ..trial.run import Run, run_of
from ..trial.stored import Remark

_WIDTH = 98


@dataclass(frozen=True)
class Chosen:
    """A recipe to export, and where it comes from."""

    recipe: Values  # complete values
    name: str  # name of the trial and its study, or of the recipe's file
    loss: float | None = None
    standard_error: float | None = None
    confirmed: bool = False  # whether the loss is of runes that no trial saw
    trial: Run | None = None


def choose(study: optuna.Study, number: int | None, method: Method) -> Chosen:
    """Choose the trial that was asked for, else the confirmed recipe, else the best trial.

    Args:
        number: number of the trial; None if none was asked for.

    Raises:
        UserError: there is no such trial, it has no recipe, or the confirmation can't be read.
    """
    confirmed = read_confirmation(study.user_attrs)
    if number is None:
        if isinstance(confirmed, Remark):
            raise _unreadable(study, confirmed)
        if confirmed is not None and confirmed.trial is None:
            return _confirmed_recipe(study, confirmed, method)
        trial = _best(study) if confirmed is None else _numbered(study, confirmed.trial)
    else:
        trial = _numbered(study, number)
    run = run_of(trial)
    if run.record.recipe is None or not run.calls:
        raise UserError(
            f"trial {run.number} has measured nothing, so there is nothing to compare the file "
            "with; name another trial, or a recipe by --recipe"
        )
    chosen = Chosen(
        recipe=_recipe(run, method),
        name=f"trial {run.number} of study {study.study_name}",
        loss=mean_loss(run.counted),
        standard_error=run.standard_error,
        trial=run,
    )
    if isinstance(confirmed, Confirmation) and confirmed.trial == run.number:
        loss, error = confirmed.loss, confirmed.standard_error
        chosen = replace(chosen, loss=loss, standard_error=error, confirmed=True)
    return chosen


def _best(study: optuna.Study) -> FrozenTrial:
    best = next(best_measured(study.get_trials(deepcopy=False)), None)
    if best is None:
        raise UserError(
            f"study {study.study_name} has no complete, feasible trial; run more, or name "
            "a recipe by --recipe"
        )
    return best


def _numbered(study: optuna.Study, number: int | None) -> FrozenTrial:
    trials = study.get_trials(deepcopy=False)
    trial = next((t for t in trials if t.number == number), None)
    if trial is None:
        raise UserError(
            f"study {study.study_name} has no trial {number}; its last is {len(trials) - 1}"
        )
    return trial


def _recipe(run: Run, method: Method) -> dict[str, Any]:
    try:
        return recipe_of(run.record, method)
    except InvalidValuesError as error:
        raise UserError(
            f"trial {run.number} has a recipe of another version ({error}); "
            "run the version that made the study"
        ) from error


def _confirmed_recipe(study: optuna.Study, confirmed: Confirmation, method: Method) -> Chosen:
    """A confirmed recipe that no trial ran."""
    try:
        recipe = method.complete(confirmed.recipe)
    except (TypeError, InvalidValuesError) as error:
        remark = Remark(
            CONFIRMED_KEY,
            f"has a recipe of another version ({error}); confirm again by python -m hpo.confirm",
        )
        raise _unreadable(study, remark) from error
    return Chosen(
        recipe=recipe,
        name=f"the recipe {confirmed.name!r} of no trial, confirmed in study {study.study_name}",
        loss=confirmed.loss,
        standard_error=confirmed.standard_error,
        confirmed=True,
    )


def _unreadable(study: optuna.Study, remark: Remark) -> UserError:
    return UserError(
        f"study {study.study_name}: the attribute {remark}, or name a trial by --trial"
    )


def read_recipe(path: Path, method: Method) -> Chosen:
    """Read a recipe from a JSON file.

    Raises:
        UserError: the file can't be read, or is not a recipe.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
        if not isinstance(values, dict):
            raise InvalidValuesError(
                f"recipe is a JSON {type(values).__name__}; write an object {{...}}"
            )
        recipe = method.complete(values)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"{path} can't be read: {reason}") from error
    except InvalidValuesError as error:
        raise UserError(f"{path}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path}: recipe is JSON in JSON without end; write an object") from error
    except ValueError as error:  # JSONDecodeError, or an integer of too many digits
        raise UserError(f"{path}: recipe is not JSON: {error}") from error
    return Chosen(recipe, path.name)


def claims_of(chosen: Chosen) -> list[Claim]:
    """The results of the recipe's trial on each instance; empty if no trial ran it."""
    return [
        Claim(call.instance, call.loss, call.standard_error, call.steps, call.steps_wanted)
        for call in (chosen.trial.counted if chosen.trial else ())
        if call.standard_error is not None and call.steps is not None
    ]


def describe_origin(chosen: Chosen, study: str, code: str, file: str) -> str:
    """The exported file's heading: trial, loss, version, and the command to make it again.

    Args:
        code: digest of the code that trials run.
        file: name of the exported file.
    """
    digest = digest_of(chosen.recipe)
    if chosen.trial is None and not chosen.confirmed:
        which = f"--recipe {chosen.name}"
        came = f"From the recipe {chosen.name}, of no trial; its digest is {digest}."
    else:
        which = "--confirmed" if chosen.trial is None else f"--trial {chosen.trial.number}"
        came = f"From {chosen.name}: {_loss(chosen)}.  The recipe's digest is {digest}."
    made = (
        f"Made from runes {version('runes')}, code {code}: the modules that trials run, without "
        "branches that this recipe does not take.  It needs Python 3.10 and torch 2.4 or newer.  "
        "To make it again:"
    )
    command = f"    python -m hpo.export --study {study} {which} --out {file}"
    return "\n\n".join([*(textwrap.fill(t, _WIDTH) for t in (came, made)), command])


def _loss(chosen: Chosen) -> str:
    error = "" if chosen.standard_error is None else f" ± {chosen.standard_error:.4f}"
    trial = chosen.trial
    if chosen.confirmed or trial is None:
        return f"confirmed loss {chosen.loss:.4f}{error}"
    n = len(trial.counted)
    ended = (
        "" if trial.state.name == "COMPLETE" else f", after which it was {trial.state.name.lower()}"
    )
    return f"loss {chosen.loss:.4f}{error}, the mean of {counted(n, 'instance')}{ended}"
