"""How the cost of our call grows, by batch size, by steps and by workers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from finetune.recipe import Recipe

from .throughput_case import Case, Trial, measure

Row = dict[str, Any]
BATCH_SIZES = (8, 16, 32, 64, 128)
STEPS = (8, 16, 32, 64)
DRAWS = 3
_DRAW = 256  # images that `adapt` draws at once: a rate is over whole draws


def count_up(most: int) -> list[int]:
    """1, 2, 4, ... and ``most``."""
    return [2**i for i in range(most.bit_length()) if 2**i < most] + [most]


def grow(
    case: Case,
    workers: Sequence[int],
    batch_sizes: Sequence[int] = BATCH_SIZES,
    steps: Sequence[int] = STEPS,
    draws: int = DRAWS,
) -> Iterator[Row]:
    """Measure; what is not varied is as in ``case``, whose workers have one thread when counted.

    Args:
        case: one worker with all cores and one recipe.
        draws: how often a call draws images while its rate is taken.
    """
    recipe = replace(case.recipes[0], steps=2)
    # A first call pays for what a process does once.
    alone = replace(case, recipes=(recipe,), passes=0)

    def steady(batch_size: int) -> Recipe:
        n = (1 + draws) * _steps_of_draw(batch_size)
        return replace(recipe, batch_size=batch_size, steps=n)

    calls = [*map(steady, batch_sizes), *(replace(recipe, steps=s) for s in steps)]
    _, *trials = measure(replace(alone, recipes=(recipe, *calls)))[0].trials
    for b, trial in zip(batch_sizes, trials, strict=False):
        ms = _ms_per_step(trial, b)
        yield {"grows": "batch_size", "x": b, "ms_per_step": ms, "images_per_s": 1e3 * b / ms}
    for s, trial in zip(steps, trials[len(batch_sizes) :], strict=True):
        yield {"grows": "steps", "x": s, "seconds": trial.train_s}
    b = recipe.batch_size
    for w in workers:
        found = measure(replace(alone, workers=w, threads=1, recipes=(recipe, steady(b))))
        rates = [1e3 * b / _ms_per_step(worked.trials[-1], b) for worked in found]
        yield {"grows": "workers", "x": w, "images_per_s": sum(rates)}


def _steps_of_draw(batch_size: int) -> int:
    return max(1, _DRAW // batch_size)


def _ms_per_step(trial: Trial, batch_size: int) -> float:
    """Once the steps of the first draw are done, which carry the start of the call."""
    marks = trial.marks[_steps_of_draw(batch_size) - 1 :]
    return 1e3 * (marks[-1] - marks[0]) / (len(marks) - 1)
