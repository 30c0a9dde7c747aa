"""A trial's note: how it ended and why, what its recipe is, its losses, seconds and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from finetune.recipe import Recipe

from ...formatting import cost_of_answer, with_error
from ...trial.outcome import Ending, Outcome
from ...trial.recipe import changed_values, recipe_of
from ...trial.record import read_trial
from ..markdown import cell, counted, shown, table


def trial_note(
    trial: FrozenTrial,
    ending: Ending,
    feasible_s: float,
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """What there is to say of a trial that ends now, in Markdown.

    Args:
        trial: with what was measured; its end need not be stored yet.
        feasible_s: seconds within which a call must return.
        links: titles and addresses of its pictures.
    """
    calls: list[Mapping[str, Any]] = trial.user_attrs.get("instances", [])
    parts = [
        _headline(trial, ending, calls),
        _feasibility(calls, ending, feasible_s),
        _cost(trial.user_attrs.get("cost")),
    ]
    parts += [f"![{cell(title)}]({address})" for title, address in links]
    if calls:
        parts.append(_losses(calls))
    parts.append(_recipe(trial))
    return "\n\n".join(part for part in parts if part)


def _headline(trial: FrozenTrial, ending: Ending, calls: Sequence[Mapping[str, Any]]) -> str:
    text = f"**Trial {trial.number}: {ending.outcome.value}**"
    if calls:
        mean = sum(call["loss"] for call in calls) / len(calls)
        error = trial.user_attrs.get("standard_error")
        text += f", loss {with_error(mean, error)} over {counted(len(calls), 'instance')}"
        if ending.value is not None and ending.outcome is not Outcome.COMPLETE:
            text += f"; over all of them probably {ending.value:.4f}"
    return f"{text}.\n\nWhy: {cell(ending.reason)}." if ending.reason else f"{text}."


def _feasibility(calls: Sequence[Mapping[str, Any]], ending: Ending, feasible_s: float) -> str:
    if ending.outcome.is_recipes_fault:
        return "**Not feasible**: it could not be measured."
    if not calls:
        return ""
    longest_s = max(call["seconds"] for call in calls)
    feasible = longest_s <= feasible_s and ending.outcome is not Outcome.INFEASIBLE
    word = "Feasible" if feasible else "**Not feasible**"
    return f"{word}: the longest call took {longest_s:.1f} s; {feasible_s:g} s are allowed."


def _cost(cost: float | None) -> str:
    return "" if cost is None else f"Cost of an answer: {cost_of_answer(cost)}."


def _losses(calls: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            cell(call["instance"]),
            with_error(call["loss"], call["standard_error"]),
            f"{call['seconds']:.1f}",
            str(call["steps"]),
        )
        for call in calls
    ]
    return table(("instance", "loss", "seconds", "steps"), rows)


def _recipe(trial: FrozenTrial) -> str:
    record = read_trial(trial)
    if record.recipe is None:
        return ""
    changed = changed_values(recipe_of(record))
    if not changed:
        return "The default recipe."
    default = Recipe().to_dict()
    rows = [(name, shown(value), shown(default[name])) for name, value in changed.items()]
    return "What its recipe changes:\n\n" + table(("field", "here", "default"), rows)
