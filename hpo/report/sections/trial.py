"""A trial: how it ended and why, losses, seconds, pictures, and changes from the default."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ...artifacts.uploads import ARTIFACT_PREFIX
from ...formatting import cost_of_answer, counted, setting, with_error
from ...problem.base import Method, changed_values
from ...trial.ranking import OVER_LIMIT, constraints_of
from ...trial.run import Run
from ..document import Block, Code, Picture, Section, Table, Text
from .confirmation import steps_text


def trial_section(run: Run, method: Method, address: str | None = None) -> Section:
    """Everything that is known of a running or finished trial.

    Args:
        method: the study's method.
        address: its files are at ``ADDRESS/ID``; None: without pictures.
    """
    outcome = run.outcome or run.state.name.lower()
    return Section("trial", f"Trial {run.number}: {outcome}", list(_blocks(run, method, address)))


def _blocks(run: Run, method: Method, address: str | None) -> Iterator[Block]:
    mean = run.record.mean_loss
    if mean is not None:
        text = f"Loss {with_error(mean, run.standard_error)}"
        text += f" over {counted(len(run.counted), 'instance')}"
        if run.state.name == "PRUNED" and run.loss is not None and run.feasible:
            text += f"; over all of them probably {run.loss:.4f}"
        yield Text(f"{text}.")
    if run.reason:
        yield Text(f"Why: {run.reason}.")
    if text := _feasibility(run):
        yield Text(text)
    if run.cost is not None:
        yield Text(f"Cost of an answer: {cost_of_answer(run.cost)}.")
    if address is not None:
        yield from _pictures(run, address)
    yield from _losses(run)
    yield from _said(run)
    yield from _recipe(run, method)


def _feasibility(run: Run) -> str:
    over_s = (constraints_of(run.trial) or {}).get(OVER_LIMIT)
    word = "Feasible" if run.feasible else "Not feasible"
    predicted_s = run.record.predicted_s
    if predicted_s is not None and over_s is not None:
        allowed_s = predicted_s - over_s
        return (
            f"{word}: the longest call takes {predicted_s:.1f} s on the reference machine; "
            f"{allowed_s:g} s are allowed."
        )
    if run.longest_s is not None and over_s is not None:
        allowed_s = run.longest_s - over_s
        return f"{word}: the longest call took {run.longest_s:.1f} s; {allowed_s:g} s are allowed."
    return "" if run.feasible else f"{word}."


def _pictures(run: Run, address: str) -> Iterator[Block]:
    """Each call's picture, then other PNGs of the trial, such as its plot."""
    kept = {}
    for key, value in run.trial.system_attrs.items():
        if key.startswith(ARTIFACT_PREFIX):
            try:
                meta = json.loads(value)
                if meta["mimetype"] == "image/png":
                    kept[str(meta["artifact_id"])] = str(meta["filename"]).removesuffix(".png")
            except (KeyError, TypeError, ValueError):  # not in Optuna's form
                continue
    titles = {call.picture: call.instance for call in run.calls if call.picture in kept}
    of_calls = [i for i in titles if i is not None]
    for identifier in [*of_calls, *sorted(set(kept) - set(of_calls), key=kept.__getitem__)]:
        yield Picture(f"{address}/{identifier}", titles.get(identifier, kept[identifier]))


def _losses(run: Run) -> Iterator[Block]:
    if run.calls:
        yield Table(
            "Its calls",
            ("instance", "loss", "seconds", "steps"),
            [
                (
                    call.instance,
                    with_error(call.loss, call.standard_error),
                    "" if call.seconds is None else f"{call.seconds:.1f}",
                    steps_text([call]),
                )
                for call in run.calls
            ],
            numbers=(1, 2, 3),
        )


def _said(run: Run) -> Iterator[Block]:
    """The end of the output of a user's file, and the traceback of a failure."""
    for call in run.calls:
        if call.output:
            yield Code(f"The end of what the call on {call.instance} printed", call.output)
    if run.record.traceback:
        yield Code("What was said as it failed", run.record.traceback)


def _recipe(run: Run, method: Method) -> Iterator[Block]:
    recipe = run.recipe(method)
    if recipe is None:  # of a release with other fields
        if run.params:
            rows = [(name, setting(value)) for name, value in run.params.items()]
            yield Table("Its parameters", ("parameter", "value"), rows, numbers=(1,))
        return
    fields = method.fields
    changed = changed_values(recipe, fields)
    if not changed:
        yield Text("It ran the default recipe.")
        return
    yield Table(
        "What its recipe has otherwise than the default",
        ("field", "value", "default"),
        [(name, setting(value), setting(fields[name].default)) for name, value in changed.items()],
        numbers=(1, 2),
    )
