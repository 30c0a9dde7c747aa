"""Compare two trials: the parameters that differ, and their losses by rune and noise level."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .arguments import StudyOptions, json_option, option, parse
from .errors import UserError, printable, run_command
from .formatting import counted, setting

if TYPE_CHECKING:
    from .analysis.pairing import Pairing
    from .problem.base import Method
    from .storage.rdb import StudyStorage
    from .study.config import StudyConfig
    from .trial.run import Run

_BIN_WIDTH = 0.1


@dataclass(frozen=True, kw_only=True)
class CompareOptions(StudyOptions):
    """Which two."""

    two: tuple[str, ...] = option(
        "a trial's number; STUDY or STUDY/NUMBER of another study in the same database, without a "
        "number its best; or a recipe's JSON file, which a trial has run",
        (),
        flag="two",
        metavar="WHICH",
    )
    json: bool = json_option("hpo/analysis/pairing.py, with `parameters` beside them")


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(CompareOptions, argv, "compare", f"{__doc__} It writes nothing.")
    if len(options.two) != 2:
        raise UserError(f"{len(options.two)} are named; write two, such as 0 17")
    import optuna

    from .analysis.pairing import pair
    from .storage.open import looked_at
    from .storage.url import study_argument
    from .study.config import load_study_file

    config = load_study_file(options.study)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = config.storage_url(options.storage)
    method = config.load_method()
    with looked_at(url, study_argument(options.study, options.storage)) as storage:
        runs = [_run(which, config, method, storage) for which in options.two]
    first, second = runs
    # What counts, where both have it; else any call, looks at a lower speed included.
    found = pair(*(run.by_instance for run in runs))
    if found is None:
        found = pair(*({c.instance: c for c in run.calls} for run in runs))
    if found is None:
        raise UserError(
            f"{options.two[0]} and {options.two[1]} have no instance in common; name two that "
            "were measured on the same runes, splits, seeds and speeds"
        )
    changed = _changed(first, second, method)
    if options.json:
        print(json.dumps({"parameters": changed, **asdict(found)}, indent=2))
    else:
        print(printable("\n".join(_lines(options.two, changed, found))))
    return 0


def _run(which: str, config: StudyConfig, method: Method, storage: StudyStorage) -> Run:
    """The trial that a person named.

    Raises:
        UserError: there is none, or it has measured nothing.
    """
    from pathlib import Path

    from .export.selection import read_recipe
    from .storage.open import load_study
    from .trial.ranking import best_measured
    from .trial.run import run_of, runs_of

    name, _, number = which.rpartition("/")
    if which.endswith(".json"):
        recipe = read_recipe(Path(which), method).recipe
        runs = runs_of(load_study(storage, config.name).get_trials(deepcopy=False))
        ran = [run for run in runs if run.recipe(method) == recipe and run.calls]
        if not ran:
            raise UserError(f"no trial of study {config.name} has run {which}; queue it first")
        return max(ran, key=lambda run: len(run.calls))
    if not which.isdecimal() and not number.isdecimal():
        name, number = which, ""
    study = load_study(storage, name or config.name)
    trials = study.get_trials(deepcopy=False)
    wanted = number or (which if which.isdecimal() else "")
    if wanted:
        trial = next((t for t in trials if t.number == int(wanted)), None)
    else:
        trial = next(best_measured(trials), None)
    if trial is None:
        raise UserError(f"study {study.study_name} has no trial {wanted or 'that is complete'}")
    run = run_of(trial)
    if not run.calls:
        raise UserError(f"trial {run.number} of study {study.study_name} has measured nothing")
    return run


def _changed(first: Run, second: Run, method: Method) -> dict[str, list[Any]]:
    """The values that differ, of the first and the second; parameters where there is no recipe."""
    recipes = [run.recipe(method) or dict(run.params) for run in (first, second)]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    return {
        name: [recipe.get(name) for recipe in recipes]
        for name in names
        if recipes[0].get(name) != recipes[1].get(name)
    }


def _lines(two: Sequence[str], changed: dict[str, list[Any]], found: Pairing) -> Iterator[str]:
    rows = [(name, *map(setting, values)) for name, values in changed.items()]
    yield from _table(("parameter", *two), rows)
    yield ""
    losses = [
        (rune, f"{a:.4f}", f"{b:.4f}", f"{b / a:.3f}") for rune, (a, b) in found.runes.items()
    ]
    yield from _table(("rune", *two, "ratio"), losses)
    if any(found.bins):
        levels = [
            (f"{_BIN_WIDTH * i:.1f}", f"{one[0]:.4f}", f"{one[1]:.4f}", f"{one[1] / one[0]:.3f}")
            for i, one in enumerate(found.bins)
            if one is not None
        ]
        yield ""
        yield from _table(("t from", *two, "ratio"), levels)
    ratio = found.ratio
    yield ""
    yield (
        f"loss of {two[1]} over that of {two[0]}: {ratio.value:.4f}, 95 % interval "
        f"{ratio.low:.4f} to {ratio.high:.4f}, on {counted(found.instances, 'instance')}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        yield "  ".join(cells).rstrip()


if __name__ == "__main__":
    run_command(main)
