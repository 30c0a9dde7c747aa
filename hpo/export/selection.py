"""Which recipe is exported, and where it comes from."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from ..errors import UserError
from ..problem.base import Claim, InvalidValuesError, Method, Values, digest_of
from ..study.confirmation import CONFIRMED_KEY
from ..trial.ranking import best_trial
from ..trial.recipe import recipe_of

_WIDTH = 98


@dataclass(frozen=True)
class Chosen:
    """A recipe and where it comes from."""

    recipe: Values  # complete
    name: str  # of the trial and its study, or of the recipe's file
    loss: float | None = None
    standard_error: float | None = None
    confirmed: bool = False  # the loss is of runes that no trial saw
    trial: FrozenTrial | None = None


def choose(study: optuna.Study, number: int | None, method: Method) -> Chosen:
    """The trial that was asked for, else what was confirmed, else the best trial.

    What was confirmed is the study's attribute ``confirmed``: an object with ``trial``, ``loss``
    and ``standard_error``; if ``trial`` is null, no trial ran the ``recipe`` that is there.

    Raises:
        UserError: there is none, or it has measured nothing.
    """
    confirmed: dict[str, Any] = study.user_attrs.get(CONFIRMED_KEY, {})
    if number is None:
        if confirmed and confirmed.get("trial") is None:
            return _confirmed_recipe(study, confirmed, method)
        number = confirmed.get("trial")
    if number is None:
        trial = best_trial(study)
        if trial is None:
            raise UserError(
                f"study {study.study_name} has no complete, feasible trial; run more, or name "
                "a recipe by --recipe"
            )
    else:
        trials = study.get_trials(deepcopy=False)
        trial = next((t for t in trials if t.number == number), None)
        if trial is None:
            raise UserError(
                f"study {study.study_name} has no trial {number}; its last is {len(trials) - 1}"
            )
    if "recipe" not in trial.user_attrs or not trial.user_attrs.get("instances"):
        raise UserError(
            f"trial {trial.number} has measured nothing, so there is nothing to compare the file "
            "with; name another trial, or a recipe by --recipe"
        )
    name = f"trial {trial.number} of study {study.study_name}"
    if confirmed.get("trial") == trial.number:
        loss, error = confirmed["loss"], confirmed.get("standard_error")
        return Chosen(recipe_of(trial, method), name, loss, error, confirmed=True, trial=trial)
    losses = [call["loss"] for call in trial.user_attrs["instances"]]
    return Chosen(
        recipe=recipe_of(trial, method),
        name=name,
        loss=sum(losses) / len(losses),
        standard_error=trial.user_attrs.get("standard_error"),
        trial=trial,
    )


def _confirmed_recipe(study: optuna.Study, confirmed: dict[str, Any], method: Method) -> Chosen:
    """What won against the trials although it is none of them."""
    try:
        recipe = method.complete(confirmed["recipe"])
    except (KeyError, TypeError, InvalidValuesError) as error:
        raise UserError(
            f"what study {study.study_name} has confirmed can't be read ({error}); confirm again "
            "by python -m hpo.confirm, or name a trial by --trial"
        ) from error
    return Chosen(
        recipe=recipe,
        name=f"the recipe {confirmed.get('name', digest_of(recipe))!r} of no trial, "
        f"confirmed in study {study.study_name}",
        loss=confirmed["loss"],
        standard_error=confirmed.get("standard_error"),
        confirmed=True,
    )


def read_recipe(path: Path, method: Method) -> Chosen:
    """The recipe in a JSON file.

    Raises:
        UserError: it can't be read, or is no recipe.
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
    except ValueError as error:  # JSONDecodeError, or an integer of too many digits
        raise UserError(f"{path}: recipe is not JSON: {error}") from error
    return Chosen(recipe, path.name)


def claims_of(chosen: Chosen) -> list[Claim]:
    """What its trial measured on each instance; empty: it is of no trial."""
    calls = chosen.trial.user_attrs["instances"] if chosen.trial is not None else ()
    return [Claim(c["instance"], c["loss"], c["standard_error"], c["steps"]) for c in calls]


def describe_origin(chosen: Chosen, study: str, code: str, file: str) -> str:
    """What the file says of itself: trial, loss, version, and how to make it again.

    Args:
        code: digest of the code that trials run.
        file: the name that the file gets.
    """
    digest = digest_of(chosen.recipe)
    if chosen.trial is None and not chosen.confirmed:
        which = f"--recipe {chosen.name}"
        came = f"From the recipe {chosen.name}, of no trial; its digest is {digest}."
    else:
        which = "--confirmed" if chosen.trial is None else f"--trial {chosen.trial.number}"
        came = f"From {chosen.name}: {_loss(chosen)}.  The recipe's digest is {digest}."
    made = (
        f"Made from runes {version('runes')}, code {code}, by joining the modules that trials run; "
        "branches that this recipe does not take are left out.  It needs Python 3.10 and torch 2.4 "
        "or newer, no file and no network; it uses a GPU where there is one.  To make it again:"
    )
    command = f"    python -m hpo.export --study {study} {which} --out {file}"
    return "\n\n".join([*(textwrap.fill(t, _WIDTH) for t in (came, made)), command])


def _loss(chosen: Chosen) -> str:
    error = "" if chosen.standard_error is None else f" ± {chosen.standard_error:.4f}"
    trial = chosen.trial
    if chosen.confirmed or trial is None:
        return f"confirmed loss {chosen.loss:.4f}{error}"
    n = len(trial.user_attrs["instances"])
    ended = (
        "" if trial.state.name == "COMPLETE" else f", after which it was {trial.state.name.lower()}"
    )
    return f"loss {chosen.loss:.4f}{error}, the mean of {n} instance{'' if n == 1 else 's'}{ended}"
