"""The best recipe, confirmed or of the search, compared with the default and the references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...analysis.comparison import compare
from ...analysis.references import (
    confirmed_places,
    losses_of,
    losses_on,
    over_runes,
    searched_places,
)
from ...formatting import counted, duration, with_error
from ...problem.points import POINTS, points
from ...study.confirmation import BASELINE, Confirmation
from ...trial.record import Call
from ...trial.run import Run
from ..data import StudyData
from ..document import Block, Section, Table, Text
from .confirmation import COST_MEANING, candidate_blocks, confirmed_lead, cost_text, points_text

_MOST_TRIALS = 8
_MOST_STARTS = 5
_QUEUED = "fixed_params"  # Optuna's system attribute of trials whose parameters were given


def lead(data: StudyData) -> Iterator[str]:
    """The result in a few sentences."""
    confirmed = data.confirmation
    if isinstance(confirmed, Confirmation):
        yield from confirmed_lead(confirmed, data.has_points)
    elif data.best:
        yield _lead_best(data, data.best[0])
    elif data.finished:
        yield "No trial is complete with every call in time, so there is no best recipe yet."
    else:
        yield "No trial has finished yet, so there is nothing to compare."
    running = sum(r.state.name == "RUNNING" for r in data.runs)
    n, compute_s = len(data.finished), sum(r.compute_s for r in data.finished)
    yield (
        f"{counted(n, 'trial')} finished, {duration(compute_s)} of compute; "
        f"{running or 'none'} running when this was written."
    )


def _lead_best(data: StudyData, best: Run) -> str:
    n = len(data.best)
    text = f"Trial {best.number} has the lowest loss so far: {_loss(best)}"
    if data.has_points:
        text += f", {points_text(best.loss or 0.0)} by the author's table"
    if n > 1:
        text += f". It is not confirmed, and the lowest of {n} noisy losses is too low"
    return text + "."


def winner_section(data: StudyData) -> Section:
    """The candidates, how sure the winner is, references and thresholds."""
    confirmed = data.confirmation
    if isinstance(confirmed, Confirmation):
        blocks = list(_confirmed_blocks(data, confirmed))
    else:
        blocks = [Text(f"The study's attribute {confirmed}.")] if confirmed else []
        blocks += list(_best_blocks(data))
    return Section("best", "The best recipe", blocks)


def _confirmed_blocks(data: StudyData, confirmed: Confirmation) -> Iterator[Block]:
    yield from candidate_blocks(confirmed)
    places = confirmed_places(data.manifest, confirmed.instances)
    row = next((r for r in confirmed.table if r.digest == confirmed.digest), None)
    own = losses_of(data.attrs, row, confirmed.instances) if row else {}
    default = next((r for r in confirmed.table if r.name == BASELINE), None)
    means = {confirmed.title: confirmed.loss}
    if default and default.loss is not None and not confirmed.is_default:
        means["the default recipe"] = default.loss
    calls = losses_on(data.references, data.manifest, places)
    yield from _compare_references(calls, own, confirmed.title)
    for name, on in calls.items():
        if len(on) == len(confirmed.instances):
            mean = over_runes({k: c.loss for k, c in on.items()}, list(on)).mean
            means[f"reference {name}"] = mean
    yield from _thresholds(data, means)


def _best_blocks(data: StudyData) -> Iterator[Block]:
    if not data.best:
        yield Text(
            "There is none: no trial is complete with every call within "
            f"{data.config.feasible_s:g} s."
        )
        return
    n = len(data.best[0].counted)
    yield Text(
        "Nothing is confirmed yet. Below are the best trials of the search, on the "
        f"{counted(n, 'instance') if n else 'instances'} that all trials are measured on. The "
        "lowest of many noisy losses is too low, and the recipe that has it is often not the best."
    )
    starts = [r for r in data.best[_MOST_TRIALS:] if _is_start(r)]
    starts = sorted(starts, key=lambda r: r.number)[:_MOST_STARTS]
    yield Table(
        "The best trials of the search"
        + (", and the recipes that it started from" if starts else ""),
        ("trial", "loss", "longest call", "cost"),
        [_trial_row(r) for r in [*data.best[:_MOST_TRIALS], *starts]],
        numbers=(1, 2, 3),
    )
    yield Text(
        f"Errors are of the noise on these instances, not over runes. {COST_MEANING}", aside=True
    )
    best = data.best[0]
    means = {f"trial {best.number}": best.loss or 0.0}
    default = data.default_run
    if default is not None and default is not best:
        means["the default recipe"] = default.loss or 0.0
    calls = losses_on(data.references, data.manifest, searched_places(data.manifest))
    yield from _compare_references(calls, best.by_instance, f"trial {best.number}")
    for name, on in calls.items():
        if best.calls and set(on) >= set(best.by_instance):
            losses = [on[label].loss for label in best.by_instance]
            means[f"reference {name}"] = sum(losses) / len(losses)
    yield from _thresholds(data, means)


def _is_start(run: Run) -> bool:
    return _QUEUED in run.trial.system_attrs


def _trial_row(run: Run) -> tuple[str, ...]:
    return (
        f"trial {run.number}" + (" (start)" if _is_start(run) else ""),
        _loss(run),
        "" if run.longest_s is None else f"{run.longest_s:.1f} s",
        cost_text(run.cost),
    )


def _loss(run: Run) -> str:
    return with_error(run.loss, run.standard_error)


def _compare_references(
    references: Mapping[str, Mapping[str, Call]], own: Mapping[str, Call], name: str
) -> Iterator[Block]:
    """Comparisons where drawings and network are the same; a remark if that is nowhere."""
    rows = [
        (f"reference {c.reference}", str(c.instances), f"{c.theirs:.4f}", f"{c.ours:.4f}",
         f"{c.difference.mean:+.4f}", c.bounds, f"{c.ratio:.3f}")
        for c in compare(references, own)
    ]  # fmt: skip
    if not rows:
        yield Text(
            "The public reference recipes were not measured on these instances, so nothing is "
            "said of them here.",
            aside=True,
        )
        return
    yield Table(
        "Compared with the public reference recipes, on the same drawings and networks: "
        f"{name} minus the reference, with its 95 % interval over runes",
        ("recipe", "instances", "its loss", "ours", "difference", "95 % interval", "ratio"),
        rows,
        numbers=(1, 2, 3, 4, 5, 6),
    )
    yield Text(
        "A is plain full fine-tuning and B a small learned correction, both without augmentation.",
        aside=True,
    )


def _thresholds(data: StudyData, means: Mapping[str, float]) -> Iterator[Block]:
    if not data.has_points:
        yield Text(
            "The author's thresholds are for ten drawings of Omniglot's Futhorc, so these losses "
            "earn no points.",
            aside=True,
        )
        return
    rows = [(counted(worth, "point"), f"{most:.3f}", _who(means, worth)) for most, worth in POINTS]
    yield Table(
        "The author's thresholds, and whose mean loss earns which points",
        ("points", "loss at most", "earned by"),
        [*rows, ("none", "", _who(means, 0))],
        numbers=(1,),
    )


def _who(means: Mapping[str, float], worth: int) -> str:
    earned: Sequence[str] = [
        f"{name} ({loss:.4f})" for name, loss in means.items() if points(loss) == worth
    ]
    return ", ".join(earned)
