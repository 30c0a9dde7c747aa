"""The best recipe: confirmed, or the best of the search; against the default and the references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from finetune.challenge import POINTS, points

from ...analysis.comparison import against
from ...analysis.references import (
    confirmed_places,
    losses_of,
    losses_on,
    over_runes,
    searched_places,
)
from ...formatting import duration, with_error
from ...study.confirmation import (
    BASELINE,
    CandidateResult,
    Confirmation,
    describe_difference,
    read_confirmation,
)
from ...trial.record import Call
from ...trial.run import Run
from ..data import Given, points_text
from ..document import Block, Figure, Section, Table, Text
from ..svg.rows import Mark, Row, rows_figure

_MOST_TRIALS = 8
_COST = "cost of an answer"
_COST_MEANING = (
    "The cost of an answer is the CPU time of the returned network over the plain one's."
)


def lead(given: Given) -> Iterator[str]:
    """What came out, in a few sentences."""
    confirmed = read_confirmation(given.attrs)
    if isinstance(confirmed, Confirmation):
        yield from _lead_confirmed(given, confirmed)
    elif given.best:
        yield _lead_best(given, given.best[0])
    elif given.finished:
        yield "No trial is complete with every call in time, so there is no best recipe yet."
    else:
        yield "No trial has finished yet, so there is nothing to compare."
    running = sum(r.state.name == "RUNNING" for r in given.runs)
    n, compute_s = len(given.finished), sum(r.duration_s for r in given.finished)
    yield (
        f"{n} trial{'' if n == 1 else 's'} finished, {duration(compute_s)} of compute; "
        f"{running or 'none'} running when this was written."
    )


def _lead_confirmed(given: Given, confirmed: Confirmation) -> Iterator[str]:
    n = len(confirmed.instances)
    who = f"The recipe {confirmed.name}" if confirmed.trial is None else f"Trial {confirmed.trial}"
    if confirmed.is_default:
        who = "The default recipe"
    text = (
        f"{who} is the best one, measured again on {n} instance{'' if n == 1 else 's'} "
        f"that no trial saw: loss {with_error(confirmed.loss, confirmed.standard_error)}"
    )
    if given.has_points:
        text += f", {points_text(confirmed.loss)} by the author's table"
    yield text + "."
    default, runner_up = confirmed.comparisons.default, confirmed.comparisons.runner_up
    if default:
        yield f"Its loss minus the default recipe's: {describe_difference(default)}."
    if runner_up and not runner_up.is_default:
        yield f"Its loss minus the runner-up's: {describe_difference(runner_up)}."


def _lead_best(given: Given, best: Run) -> str:
    n = len(given.best)
    text = f"Trial {best.number} has the lowest loss so far: {_loss(best)}"
    if given.has_points:
        text += f", {points_text(best.loss or 0.0)} by the author's table"
    if n > 1:
        text += f". It is not confirmed, and the lowest of {n} noisy losses is too low"
    return text + "."


def winner_section(given: Given) -> Section:
    """The candidates, how sure the winner is, references and thresholds."""
    confirmed = read_confirmation(given.attrs)
    if isinstance(confirmed, Confirmation):
        blocks = list(_confirmed_blocks(given, confirmed))
    else:
        blocks = [Text(f"The study's attribute {confirmed}.")] if confirmed else []
        blocks += list(_best_blocks(given))
    return Section("best", "The best recipe", blocks)


def _confirmed_blocks(given: Given, confirmed: Confirmation) -> Iterator[Block]:
    yield Table(
        "The best of the search and the default recipe, measured again on instances that no "
        "trial saw",
        ("recipe", "loss", "to the default", "in the search", "longest call", _COST, "left"),
        [_standing(row) for row in confirmed.table],
        numbers=(1, 2, 3, 4, 5),
    )
    yield Text(
        f"Errors are standard errors over {confirmed.units} runes. Differences are paired, on "
        "the instances that both were measured on; losses of recipes that left early are of "
        f"fewer instances. {_COST_MEANING}",
        aside=True,
    )
    marks = [
        Row(
            row.title,
            [
                Mark(
                    "",
                    row.difference,
                    row.difference - row.difference_error,
                    row.difference + row.difference_error,
                )
                if row.difference_error is not None
                else Mark("", row.difference)
            ],
        )
        for row in confirmed.table
        if row.difference is not None
    ]
    if marks:
        marks.append(Row(BASELINE, [Mark("", 0.0)]))
        yield Figure(
            rows_figure(
                "candidates",
                "Loss of each candidate minus the default recipe's",
                f"{len(marks) - 1} candidates; further left is better. The table above has the "
                "values.",
                "loss, minus the default's",
                marks,
                lines=[(0.0, "")],
            ),
            "Loss minus the default recipe's on the same instances, with its standard error over "
            "runes. Left of the line is better.",
        )
    places = confirmed_places(given.manifest, confirmed.instances)
    own = losses_of(given.attrs, confirmed.digest, confirmed.instances, confirmed.loss)
    default = next((r for r in confirmed.table if r.name == BASELINE), None)
    means = {confirmed.title: confirmed.loss}
    if default and default.loss is not None and not confirmed.is_default:
        means["the default recipe"] = default.loss
    calls = losses_on(given.references, given.manifest, places)
    yield from _against_references(calls, own, confirmed.title)
    for name, on in calls.items():
        if len(on) == len(confirmed.instances):
            mean = over_runes({k: c.loss for k, c in on.items()}, list(on)).mean
            means[f"reference {name}"] = mean
    yield from _thresholds(given, means)


def _standing(row: CandidateResult) -> tuple[str, ...]:
    left = "" if row.left == "finalist" else row.left
    return (
        row.title,
        with_error(row.loss, row.standard_error),
        with_error(row.difference, row.difference_error, "+"),
        with_error(row.search_difference, row.search_difference_error, "+"),
        f"{row.longest_call_s:.1f} s",
        _cost(row.cost),
        f"{left}: {row.reason}" if row.reason else left,
    )


def _cost(cost: float | None) -> str:
    return "" if cost is None else f"{cost:.2f}"


def _best_blocks(given: Given) -> Iterator[Block]:
    if not given.best:
        yield Text(
            "There is none: no trial is complete with every call within "
            f"{given.config.feasible_s:g} s."
        )
        return
    n = len(given.best[0].calls)
    yield Text(
        "Nothing is confirmed yet. Below are the best trials of the search, on the "
        f"{n or 'same'} instance{'' if n == 1 else 's'} that all trials are measured on. The "
        "lowest of many noisy losses is too low, and the recipe that has it is often not the best."
    )
    yield Table(
        "The best trials of the search",
        ("trial", "loss", "longest call", _COST),
        [
            (
                f"trial {r.number}",
                _loss(r),
                "" if r.longest_s is None else f"{r.longest_s:.1f} s",
                _cost(r.cost),
            )
            for r in given.best[:_MOST_TRIALS]
        ],
        numbers=(1, 2, 3),
    )
    yield Text(
        f"Errors are of the noise on these instances, not over runes. {_COST_MEANING}", aside=True
    )
    best = given.best[0]
    means = {f"trial {best.number}": best.loss or 0.0}
    default = given.default_run
    if default is not None and default is not best:
        means["the default recipe"] = default.loss or 0.0
    calls = losses_on(given.references, given.manifest, searched_places(given.manifest))
    yield from _against_references(calls, best.by_instance, f"trial {best.number}")
    for name, on in calls.items():
        if best.calls and set(on) >= set(best.by_instance):
            losses = [on[label].loss for label in best.by_instance]
            means[f"reference {name}"] = sum(losses) / len(losses)
    yield from _thresholds(given, means)


def _loss(run: Run) -> str:
    return with_error(run.loss, run.standard_error)


def _against_references(
    references: Mapping[str, Mapping[str, Call]], own: Mapping[str, Call], name: str
) -> Iterator[Block]:
    """Where drawings and network are the same; a remark where that is nowhere."""
    rows = [
        (f"reference {a.reference}", str(a.instances), f"{a.theirs:.4f}", f"{a.ours:.4f}",
         f"{a.gap.mean:+.4f}", a.bounds, f"{a.ratio:.3f}")
        for a in against(references, own)
    ]  # fmt: skip
    if not rows:
        yield Text(
            "The public reference recipes were not measured on these instances, so nothing is "
            "said of them here.",
            aside=True,
        )
        return
    yield Table(
        f"Against the public reference recipes, on the same drawings and networks: {name} minus "
        "the reference, with its 95 % interval over runes",
        ("recipe", "instances", "its loss", "ours", "difference", "95 % interval", "ratio"),
        rows,
        numbers=(1, 2, 3, 4, 5, 6),
    )
    yield Text(
        "A is plain full fine-tuning and B a small learned correction, both without augmentation.",
        aside=True,
    )


def _thresholds(given: Given, means: Mapping[str, float]) -> Iterator[Block]:
    if not given.has_points:
        yield Text(
            "The author's thresholds are for ten drawings of Omniglot's Futhorc, so these losses "
            "earn no points.",
            aside=True,
        )
        return
    rows = [
        (f"{worth} point{'' if worth == 1 else 's'}", f"{most:.3f}", _who(means, worth))
        for most, worth in POINTS
    ]
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
