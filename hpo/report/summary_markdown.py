"""A study's note: what it is, what came out so far, what matters, what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from finetune.challenge import POINTS, points

from ..analysis.comparison import Against, against
from ..analysis.references import (
    confirmed_places,
    losses_of,
    losses_on,
    read_references,
    searched_places,
)
from ..analysis.status import Best, Status
from ..formatting import with_error
from ..study.config import StudyConfig
from ..study.confirmation import Confirmation, Left, describe_difference, read_confirmation
from ..study.manifest import MANIFEST_KEY
from ..trial.ranking import best_trials, is_feasible
from ..trial.run import runs_of
from ..trial.stored import Remark
from .markdown import cell, counted, shown, table

_QUEUED = "fixed_params"  # Optuna's attribute of trials that were asked for
_MOST_STARTS = 5
_MOST_PARAMETERS = 10
_MANY = 0.3  # of the trials


def study_note(
    config: StudyConfig,
    asked: str,
    status: Status,
    trials: Sequence[FrozenTrial],
    attrs: Mapping[str, Any],
) -> str:
    """The story, in Markdown.

    Args:
        asked: the study as the person who started the worker named it.
        trials: the study's finished ones.
        attrs: the study's user attributes, of which the manifest and what is confirmed are used.
    """
    manifest: Mapping[str, str] = attrs.get(MANIFEST_KEY, {})
    confirmed = read_confirmation(attrs)
    parts = [
        f"# {cell(config.name)}",
        cell(config.about),
        _state(status),
        "## What came out",
        *_confirmed(config, confirmed),
        *_search(config, status, trials, isinstance(confirmed, Confirmation)),
        *_beside_references(_against(trials, attrs, manifest, confirmed)),
        "## What matters",
        _importance(status),
        "## What to do next",
        *_next(asked, status, trials, isinstance(confirmed, Confirmation)),
        "## What it measures",
        table(("", "manifest"), [(cell(k), cell(v)) for k, v in manifest.items()]),
        f"*Written at {cell(status.at)}.*",
    ]
    return "\n\n".join(part for part in parts if part)


def _state(status: Status) -> str:
    outcomes = ", ".join(f"{n} {name}" for name, n in status.outcomes.items())
    pace = "" if status.pace is None else f"; {status.pace.trials_per_hour:.1f} trials an hour"
    left = f" Its budget is spent: {cell(status.spent)}." if status.spent else ""
    return (
        f"{counted(status.finished, 'trial')} finished ({outcomes or 'none'}), which took "
        f"{status.compute_s / 3600:.2f} h together{pace}.{left}"
    )


def _confirmed(config: StudyConfig, confirmed: Confirmation | Remark | None) -> list[str]:
    if not isinstance(confirmed, Confirmation):
        return [f"The study's attribute {confirmed}."] if confirmed else []
    rows = [
        (
            cell(row.title),
            with_error(row.loss, row.standard_error),
            _points(config, row.loss),
            str(row.calls),
        )
        for row in sorted(confirmed.table, key=lambda r: (r.left != Left.FINALIST, r.loss or 0.0))
        if row.loss is not None
    ]
    parts = [
        f"**Confirmed: {cell(confirmed.title)}**, on "
        f"{counted(len(confirmed.instances), 'instance')} that no trial saw.",
        table(("recipe", "loss, unseen runes", "points", "calls"), rows),
    ]
    for found, words in (
        (confirmed.comparisons.default, "the default recipe"),
        (confirmed.comparisons.runner_up, "the runner-up"),
    ):
        if found:
            parts.append(f"Against {words}: {cell(describe_difference(found))}.")
    return parts


def _against(
    trials: Sequence[FrozenTrial],
    attrs: Mapping[str, Any],
    manifest: Mapping[str, str],
    confirmed: Confirmation | Remark | None,
) -> list[Against]:
    """The confirmed recipe beside the public reference recipes; without one, the best trial's."""
    if isinstance(confirmed, Confirmation):
        places = confirmed_places(manifest, confirmed.instances)
        own = losses_of(attrs, confirmed.digest, confirmed.instances, confirmed.loss)
    else:
        places = searched_places(manifest)
        own = next((run.by_instance for run in runs_of(best_trials(trials, 1))), {})
    return against(losses_on(read_references(None), manifest, places), own)


def _beside_references(found: Sequence[Against]) -> list[str]:
    if not found:
        return []
    rows = [
        (a.reference, str(a.instances), f"{a.theirs:.4f}", f"{a.ours:.4f}",
         f"{a.gap.mean:+.4f} ({a.bounds})", f"{a.ratio:.3f}")
        for a in found
    ]  # fmt: skip
    head = ("reference", "instances", "its loss", "ours", "difference (95 % interval)", "ratio")
    return ["Beside the public reference recipes, on the same drawings:", table(head, rows)]


def _search(
    config: StudyConfig, status: Status, trials: Sequence[FrozenTrial], is_confirmed: bool
) -> list[str]:
    if not status.best:
        return ["No trial is complete and feasible yet."]
    n = len(best_trials(trials))
    starts = [t for t in best_trials(trials) if _QUEUED in t.system_attrs]
    starts = sorted(starts, key=lambda t: t.number)[:_MOST_STARTS]
    rows = [_row(config, "best", status.best[0])]
    rows += [
        (
            f"start: trial {t.number}",
            with_error(t.value, t.user_attrs.get("standard_error")),
            _points(config, t.value),
            _seconds(t.user_attrs.get("longest_call_s")),
        )
        for t in starts
        if t.number != status.best[0].trial
    ]
    parts = [
        "In the search:",
        table(("recipe", "loss", "points", "longest call"), rows),
    ]
    if not is_confirmed:
        parts.append(
            f"The best is the lowest loss of {counted(n, 'trial')}, and so probably too low: "
            "`hpo.confirm` tells."
        )
    if config.instances.has_points:
        worth = ", ".join(f"{p} up to {threshold:.3f}" for threshold, p in sorted(POINTS))
        parts.append(f"Points by the author's table: {worth}.")
    else:
        parts.append(
            "These are not ten drawings of Omniglot's Futhorc, so the author's "
            "thresholds do not apply."
        )
    changed = status.best[0].changed
    if changed:
        values = ", ".join(f"{cell(k)} = {shown(v)}" for k, v in changed.items())
        parts.append(f"The best trial's recipe has {values}.")
    return parts


def _row(config: StudyConfig, word: str, best: Best) -> tuple[str, ...]:
    return (
        f"{word}: trial {best.trial}",
        with_error(best.loss, best.standard_error),
        _points(config, best.loss),
        _seconds(best.longest_call_s),
    )


def _importance(status: Status) -> str:
    if not status.importances:
        return f"Not known yet: {cell(status.importances_unknown or 'nothing varies')}."
    rows = [
        (cell(i.name), f"{i.share:.2f} ± {i.standard_error:.2f}")
        for i in status.importances[:_MOST_PARAMETERS]
    ]
    return table(("parameter", "share of the importance"), rows) + (
        "\n\nA share that is no larger than its error may well be zero."
    )


def _next(
    asked: str,
    status: Status,
    trials: Sequence[FrozenTrial],
    is_confirmed: bool,
) -> list[str]:
    parts = []
    infeasible = sum(not is_feasible(t) for t in trials)
    if infeasible > _MANY * len(trials) > 0:
        parts.append(
            f"{infeasible} of {counted(len(trials), 'trial')} were not feasible: allow fewer "
            "steps, or a shorter `deadline_s`."
        )
    commands = []
    if status.spent is None:
        commands.append((f"python -m hpo.worker --study {asked}", "more trials"))
    if status.best and not is_confirmed:
        commands.append((f"python -m hpo.confirm --study {asked}", "the best few, on unseen runes"))
    if is_confirmed:
        commands.append(
            (f"python -m hpo.export --study {asked} --confirmed --out finetune.py", "the winner")
        )
        if status.spent is None:
            commands.append((f"python -m hpo.confirm --study {asked}", "after more trials"))
    if status.spent is not None and is_confirmed:
        parts.append("The search is over and its winner confirmed: hand it in.")
    if commands:
        width = max(len(command) for command, _ in commands)
        lines = "\n".join(f"{command:<{width}}  # {why}" for command, why in commands)
        parts.append(f"```sh\n{lines}\n```")
    return parts or ["Wait for the first trials."]


def _points(config: StudyConfig, loss: float | None) -> str:
    known = loss is not None and config.instances.has_points
    return str(points(loss)) if known and loss is not None else "–"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
