"""Recipes and instances to time for a machine profile.

They need only the package's own drawings and network.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from finetune.machine.device import resolve_precision, training_device
from finetune.recipe import GROUPS, LORA_GROUPS, Recipe

from .instances import RuneInstance
from .runes import RuneProblem
from .settings import Confirm, Estimator, Instances

_RUNES = ("thorn", "ger", "os", "ear")
_DRAWINGS = (10, 10, 5, 15)  # numbers of drawings, in turn; the challenge's number comes twice
_DRAWN_AT_ONCE = 256  # images that a call draws in one round; a timing needs whole rounds
_LEAST_STEPS = 24

# Choices that change the cost of a call, each as fields of the recipe.
_BATCHES = ({"batch_size": b} for b in (4, 8, 8, 16, 16, 32, 32, 64))
_TRAINED: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"train_groups": [g for g in GROUPS if g != "middle"]},
    {"train_groups": [g for g in GROUPS if g not in ("input", "down")]},
    {"train_groups": ["norm_bias", "embedding"]},
    {"train_groups": ["norm_bias"]},
    {"train_groups": ["up", "output", "embedding"]},
    {"train_groups": ["middle", "up", "output"]},
    {"train_groups": ["up", "output"]},
    {"train_groups": ["output"]},
    {"train_groups": ["down", "middle"]},
)
_LOW_RANK: tuple[dict[str, Any], ...] = (
    {},
    {},
    {},
    {"lora_rank": 4, "lora_groups": ["middle"]},
    {"lora_rank": 16, "lora_groups": ["down", "middle", "up"]},
    {"lora_rank": 2, "lora_groups": list(LORA_GROUPS)},
    {"lora_rank": 32, "lora_groups": list(LORA_GROUPS)},
)
_HEADS = ({"head_hidden": n} for n in (0, 32, 64, 64, 96))
_OUTPUTS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {},
    {"bank_images": 0},
    {"bank_images": 1024, "window_images": 512},
    {"target_limit": 0.0},
    {"output": "velocity"},
)
_DRAWN: tuple[dict[str, Any], ...] = ({}, {}, {}, {"blend": 0.0}, {"render": "direct"})
_FACTORS = (tuple(_BATCHES), _TRAINED, _LOW_RANK, tuple(_HEADS), _OUTPUTS, _DRAWN)


def calibration_values(n: int, precision: str) -> list[dict[str, Any]]:
    """Complete values of ``n`` recipes to time; the first differ from the default by one change.

    Args:
        precision: number format of all recipes.
    """
    changes: list[dict[str, Any]] = [{}]
    changes += [one for factor in _FACTORS for one in _distinct(factor) if one]
    choose = random.Random(0)
    while len(changes) < n:
        changes.append({k: v for factor in _FACTORS for k, v in choose.choice(factor).items()})
    return [Recipe.from_dict({**c, "precision": precision}).to_dict() for c in changes[:n]]


def calibration_instance(number: int) -> RuneInstance:
    """The instance that the recipe of this number is timed on: a rune drawn by the package."""
    at = number % len(_RUNES)
    return _instance(_RUNES[at], _DRAWINGS[at])


@cache
def _instance(rune: str, train: int) -> RuneInstance:
    asked = Instances(source="drawn", runes=(rune,), train=train)
    return RuneProblem(asked, Estimator(), Confirm(), Path()).instances()[0]


def steps_to_time(values: dict[str, Any]) -> int:
    """Number of steps to time in a call: three rounds of drawing, one of them as a warm-up."""
    round_steps = max(1, _DRAWN_AT_ONCE // int(values["batch_size"]))
    return max(_LEAST_STEPS, 3 * round_steps)


def precision_here(asked: str) -> str:
    """The number format that this machine computes a step in: "bf16" or "fp32"."""
    network = calibration_instance(0).pretrained
    return resolve_precision(asked, training_device(next(network.parameters()).device))


def _distinct(factor: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for i, one in enumerate(factor) if one not in factor[:i]]
