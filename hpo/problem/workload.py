"""The work in a call of the recipe, in the units of a machine profile.

The amounts follow from the recipe, the number of drawings and the sizes of the network's groups.
The seconds of a unit are measured (`hpo.calibrate`).
"""

from __future__ import annotations

from collections.abc import Mapping

from finetune.recipe import Recipe

from .base import Workload

# Limits of `finetune.augment.mix` and `finetune.train.run`: more drawings than these do not blend,
# or have no pen path; a CPU draws so many images at once, and so many to count levels.
_MOST_BLENDED, _MOST_TRACED = 20, 60
_DRAWN_AT_ONCE = 256
_LEVEL_SAMPLES = 512
_BANK_IMAGES = 4096  # comparisons with a bank are counted in units of so many images
_MILLION = 1e6
# Groups in the order in which the network runs. Norms, biases and the class embedding are used from
# the first layer on.
_ORDER = ("input", "down", "middle", "up", "output")
_FROM_FIRST = ("norm_bias", "embedding")


def workload_of(recipe: Recipe, n_drawings: int, sizes: Mapping[str, int]) -> Workload:
    """The work in a call of ``recipe`` on ``n_drawings`` drawings.

    Args:
        sizes: number of the network's parameters in each of `finetune.recipe.GROUPS`.
    """
    return Workload(
        startup=_nonzero(_startup(recipe, n_drawings)),
        step=_nonzero(_step(recipe, n_drawings, sizes)),
        steps=recipe.steps,
        deadline_s=recipe.deadline_s,
        precision=recipe.precision,
    )


def _startup(recipe: Recipe, n: int) -> dict[str, float]:
    """Work before the first step: prepare drawings, count levels, draw the bank."""
    by_pen = recipe.render == "pen" and n <= _MOST_TRACED
    blends = by_pen and recipe.blend > 0 and n <= _MOST_BLENDED
    drawn = float(max(_DRAWN_AT_ONCE, recipe.batch_size))  # the first batches
    windows, bank = 0, _bank_images(recipe)
    if recipe.output == "levels":
        drawn += _LEVEL_SAMPLES + bank
        windows = min(recipe.window_images, bank)
    return {
        "call": 1,
        "pen drawings": n if by_pen else 0,
        "pairs of drawings": n * (n - 1) if blends else 0,
        "images by pen": drawn if by_pen else 0,
        "images warped": 0 if by_pen else drawn,
        "images blended": drawn if blends else 0,
        "images with windows": windows,
    }


def _step(recipe: Recipe, n: int, sizes: Mapping[str, int]) -> dict[str, float]:
    """Work in one step on all threads: draw images, run the network forward and backward."""
    b = float(recipe.batch_size)
    by_pen = recipe.render == "pen" and n <= _MOST_TRACED
    levels = recipe.output == "levels"
    blends = by_pen and recipe.blend > 0 and n <= _MOST_BLENDED
    updated = {g for g in _ORDER if g in recipe.train_groups or g in recipe.lora_groups}
    if levels:
        updated.discard("output")  # the head replaces it
    from_first = set(_FROM_FIRST) & set(recipe.train_groups)
    amounts = {
        "step": 1.0,
        "images": b,
        "images by pen": b if by_pen else 0.0,
        "images warped": 0.0 if by_pen else b,
        "images blended": b if blends else 0.0,
        "images with levels": b if levels else 0.0,
        "images with a second path": b if levels and recipe.head_hidden else 0.0,
        "images x hidden channels": b * recipe.head_hidden if levels else 0.0,
        "comparisons with the bank": (
            b * _bank_images(recipe) / _BANK_IMAGES if recipe.target_limit else 0.0
        ),
        "gradients of the embedding": b if "embedding" in from_first else 0.0,
        "gradients of norms": b if "norm_bias" in from_first else 0.0,
    }
    earlier = bool(from_first)  # whether this group or an earlier one has trained parameters
    for group in _ORDER:
        earlier = earlier or group in updated
        amounts[f"gradients through {group}"] = b if earlier else 0.0
        amounts[f"gradients of {group}"] = b if group in updated else 0.0
    low_rank = sum(sizes[g] for g in recipe.lora_groups) / _MILLION
    full = sum(sizes[g] for g in recipe.train_groups if g not in recipe.lora_groups) / _MILLION
    amounts |= {
        "million weights that train": full,
        "million weights of low rank": low_rank,
        "million weights of low rank x rank": low_rank * recipe.lora_rank,
    }
    return amounts


def _bank_images(recipe: Recipe) -> int:
    asked = min(recipe.bank_images, recipe.steps * recipe.batch_size)
    return asked if recipe.output == "levels" else 0


def _nonzero(amounts: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in amounts.items() if amount}
