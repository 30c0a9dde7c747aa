"""What to do next, by the state of the study."""

from __future__ import annotations

import math
from collections.abc import Iterator

from optuna.distributions import CategoricalDistribution

from ...formatting import counted, setting
from ...study.confirmation import Confirmation
from ...trial.outcome import Outcome
from ...trial.run import Run
from ...trial.stored import finite
from ..data import StudyData
from ..document import Block, Code, Section, Text
from ..sanitize import plain

_NEAR = 0.03  # share of a range; a best value this near its end may be better beyond it
_MOST_ENDS = 5
_MANY = 0.3  # share of the finished trials
_REASON = 200  # characters


def next_section(data: StudyData) -> Section:
    """Commands with their reasons, and advice to change the study file."""
    blocks = [*_commands(data), *_crashed(data), *_infeasible(data), *_ends(data)]
    return Section("next", "What to do next", blocks)


def _commands(data: StudyData) -> Iterator[Block]:
    study = data.study_argument
    confirm = f"python -m hpo.confirm --study {study}"
    if data.spent is None:
        yield Code(
            "Go on searching: the budget is not spent.", f"python -m hpo.worker --study {study}"
        )
    if data.finished:
        yield Code(
            "Look at the trials in a browser, or write this story as one page.",
            f"python -m hpo.dashboard --study {study} --open\n"
            f"python -m hpo.report --study {study} --out report.html",
        )
    if not data.best:
        if data.spent is not None:
            yield Text("The budget is spent without a feasible trial: raise it, or ask for less.")
        return
    confirmed = data.confirmation
    if not isinstance(confirmed, Confirmation):
        yield Code("Measure the best few again, on runes that no trial saw.", confirm)
        yield Code(
            "Write the best trial as the one file that is handed in.",
            f"python -m hpo.export --study {study} --out {_out(data)}",
        )
        return
    best = data.best[0]
    if best.number not in {row.trial for row in confirmed.table}:
        yield Code(
            f"Confirm again: trial {best.number} has the lowest loss and has not taken part.",
            confirm,
        )
    rival = confirmed.comparisons.runner_up or confirmed.comparisons.default
    if rival is not None and not rival.is_sure:
        yield Text(
            "The winner and its runner-up are not told apart. More runes, splits or seeds in "
            "[confirm] of the study file, or more trials, would tell; either recipe will do."
        )
    yield Code(
        "Write the confirmed recipe as the one file that is handed in, proved against its trial.",
        f"python -m hpo.export --study {study} --confirmed --out {_out(data)}",
    )


def _out(data: StudyData) -> str:
    """A name for the exported file that does not hide a package of the same name."""
    file = data.config.method.file
    return "submission/finetune.py" if file is None else f"tuned_{file.name}"


def _crashed(data: StudyData) -> Iterator[Block]:
    crashed = [r for r in data.finished if r.outcome == Outcome.CRASHED.value]
    if len(crashed) > _MANY * len(data.finished):
        n = counted(len(data.finished), "trial")
        reason = plain(crashed[-1].reason or "without a word", _REASON)
        yield Text(f"{len(crashed)} of {n} crashed: mend the file. The last one: {reason}")


def _infeasible(data: StudyData) -> Iterator[Block]:
    n = sum(not r.feasible and r.outcome != Outcome.CRASHED.value for r in data.finished)
    if n > _MANY * len(data.finished):
        yield Text(
            f"{n} of {counted(len(data.finished), 'trial')} were not feasible: allow fewer steps "
            "or a shorter deadline_s in the space of the study file."
        )


def _ends(data: StudyData) -> Iterator[Block]:
    """Parameters whose best value lies at an end of its range."""
    if not data.best:
        return
    best = data.best[0]
    words = [word for name in best.params if (word := _end(best, name))]
    if words:
        more = f", and {len(words) - _MOST_ENDS} more" if len(words) > _MOST_ENDS else ""
        yield Text(
            f"The best trial, {best.number}, is at the end of the range of "
            f"{'; '.join(words[:_MOST_ENDS])}{more}. A new study with a wider one may find better."
        )


def _end(run: Run, name: str) -> str:
    distribution = run.distributions.get(name)
    value = finite(run.params[name])
    if distribution is None or isinstance(distribution, CategoricalDistribution) or value is None:
        return ""
    low, high = getattr(distribution, "low", None), getattr(distribution, "high", None)
    if low is None or high is None or not low < high:
        return ""
    if getattr(distribution, "log", False):
        share = math.log(value / low) / math.log(high / low)
    else:
        share = (value - low) / (high - low)
    # An amount can't go below zero.
    if share >= 1 - _NEAR or (share <= _NEAR and low != 0):
        return f"{name} ({setting(run.params[name])} of {setting(low)} to {setting(high)})"
    return ""
