"""What a call of the recipe has to do, in units that a machine profile gives seconds for.

The amounts follow from the recipe, the number of drawings and the sizes of the network's groups;
how many seconds a unit takes is measured (`hpo.calibrate`).
"""

from __future__ import annotations

from collections.abc import Mapping

from finetune.recipe import Recipe

from .base import Workload

# As in `finetune.augment.mix`, `finetune.train.run`: more drawings do not blend; a CPU draws so
# many images at once, and so many to count levels.
_MOST_BLENDED = 20
_DRAWN_AT_ONCE = 256
_LEVEL_SAMPLES = 512
_BANK_IMAGES = 4096  # unit of comparisons with a bank
_MILLION = 1e6
# Groups in the order in which the network runs; norms, biases and the class embedding act from its
# first layer on.
_ORDER = ("input", "down", "middle", "up", "output")
_FROM_FIRST = ("norm_bias", "embedding")


def workload_of(recipe: Recipe, n_drawings: int, sizes: Mapping[str, int]) -> Workload:
    """What a call of ``recipe`` on so many drawings has to do.

    Args:
        sizes: parameters of the network in each of `finetune.recipe.GROUPS`.
    """
    return Workload(
        startup=_nonzero(_startup(recipe, n_drawings)),
        step=_nonzero(_step(recipe, n_drawings, sizes)),
        steps=recipe.steps,
        deadline_s=recipe.deadline_s,
        precision=recipe.precision,
    )


def _startup(recipe: Recipe, n: int) -> dict[str, float]:
    """Before the first step: drawings are prepared, levels counted, the bank is drawn."""
    by_pen = recipe.render == "pen"
    blends = by_pen and recipe.blend > 0 and n <= _MOST_BLENDED
    drawn = float(max(_DRAWN_AT_ONCE, recipe.batch_size))  # the first batches
    windows = 0.0
    if recipe.output == "levels":
        bank = min(recipe.bank_images, recipe.steps * recipe.batch_size)
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
    """Of one step, on all threads: images are drawn, the network runs forward and back."""
    b = float(recipe.batch_size)
    by_pen, levels = recipe.render == "pen", recipe.output == "levels"
    blends = by_pen and recipe.blend > 0 and n <= _MOST_BLENDED
    updated = {g for g in _ORDER if g in recipe.train_groups or g in recipe.lora_groups}
    if levels:
        updated.discard("output")  # the head is in its place
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
            b * recipe.bank_images / _BANK_IMAGES if levels and recipe.target_limit else 0.0
        ),
        "gradients of the embedding": b if "embedding" in from_first else 0.0,
        "gradients of norms": b if "norm_bias" in from_first else 0.0,
    }
    earlier = bool(from_first)  # a trained parameter lies in this group or before it
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


def _nonzero(amounts: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in amounts.items() if amount}
