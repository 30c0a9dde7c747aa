"""Recipe: every choice that a trial can sample, as one frozen value."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

# A partition of the network's parameters; see `finetune.model.groups`.
GROUPS = ("input", "down", "middle", "up", "output", "norm_bias", "embedding")
LORA_GROUPS = ("input", "down", "middle", "up", "output")  # those that hold convolutions


class RecipeError(ValueError):
    """A value is not allowed.  The message names the field and the allowed values."""


def _number(default: float, low: float, high: float, unit: str, meaning: str) -> Any:
    """A number in [low, high]; a whole number if its default is an int."""
    return field(default=default, metadata={"range": (low, high), "unit": unit, "meaning": meaning})


def _choice(default: str, choices: tuple[str, ...], meaning: str) -> Any:
    return field(default=default, metadata={"choices": choices, "meaning": meaning})


def _subset(default: tuple[str, ...], choices: tuple[str, ...], meaning: str) -> Any:
    return field(default=default, metadata={"subset": choices, "meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to adapt a pretrained network to ten drawings.

    Times within a run are shares of the run, also if the deadline ends it early.  Pixels are those
    of the 28x28 image.  Ranges of the augmentation are half-widths of uniform distributions.

    Raises:
        RecipeError: a value is out of its range or of a wrong type, or contradicts another.
    """

    # Optimisation
    steps: int = _number(6000, 1, 1_000_000, "steps", "optimizer steps when time allows")
    batch_size: int = _number(32, 1, 4096, "images", "augmented drawings per step")
    lr: float = _number(4e-3, 1e-7, 1.0, "1", "peak learning rate of AdamW")
    schedule: str = _choice(
        "cosine", ("cosine", "linear", "constant"), "learning rate after the warm-up"
    )
    warmup: float = _number(0.05, 0.0, 0.9, "share", "linear warm-up of the learning rate")
    beta2: float = _number(0.99, 0.8, 0.9999, "1", "AdamW's decay of squared gradients")
    clip_norm: float = _number(1.0, 0.0, 1e6, "1", "largest gradient norm; 0 is no clipping")

    # Which layers
    train_groups: tuple[str, ...] = _subset(
        GROUPS, GROUPS, "groups of layers that train; the others are frozen"
    )
    lora_rank: int = _number(0, 0, 128, "1", "rank of the low-rank updates; 0 is full training")
    lora_scale: float = _number(1.0, 1e-3, 100.0, "1", "factor of the low-rank updates")
    lora_groups: tuple[str, ...] = _subset(
        (), LORA_GROUPS, "groups whose convolutions get low-rank updates, if the rank is not 0"
    )

    # What is learnt
    output: str = _choice(
        "levels",
        ("levels", "velocity"),
        "a posterior over each pixel's grey level, or the network's own velocity",
    )
    level_weight: float = _number(
        0.15, 0.0, 100.0, "1", "of the levels' cross entropy beside the flow loss"
    )
    head_hidden: int = _number(
        64, 0, 256, "channels", "width of the head's second path; 0 is no second path"
    )
    head_lr_factor: float = _number(
        3.0, 0.0, 1000.0, "1", "learning rate of the levels' head over that of the rest"
    )
    logit_mean: float = _number(-0.5, -5.0, 5.0, "1", "mean of logit(t) for the times of training")
    logit_std: float = _number(1.5, 0.05, 5.0, "1", "deviation of logit(t)")

    # Posterior means over a bank of augmented drawings
    bank_images: int = _number(
        4096, 0, 65_536, "images", "augmented drawings in the bank; 0 is no bank"
    )
    bank_limit: float = _number(
        0.9, 0.0, 1.0, "1", "most that their posterior mean counts in an answer, at noise"
    )
    target_limit: float = _number(
        0.9, 0.0, 1.0, "1", "most that it counts in the target of a training step"
    )
    window_images: int = _number(
        2048, 0, 65_536, "images", "of the bank that are also compared window by window"
    )
    window_limit: float = _number(
        0.35, 0.0, 1.0, "1", "most that their mean counts in an answer, at less noise"
    )
    window_px: float = _number(
        5.5, 0.5, 50.0, "px", "deviation of a window at as much noise as signal"
    )

    # Augmentation mix
    render: str = _choice(
        "pen",
        ("pen", "direct"),
        "draw along the pen's path anew, or warp the 28x28 drawing itself",
    )
    rotation_deg: float = _number(2.0, 0.0, 180.0, "degrees", "rotation, either way")
    scale: float = _number(0.2, 0.0, 0.9, "1", "size, as a relative change")
    aspect: float = _number(0.3, 0.0, 0.9, "1", "width over height, as a relative change")
    shear: float = _number(0.08, 0.0, 1.0, "1", "horizontal shear: how upright strokes lean")
    slope: float = _number(0.2, 0.0, 1.0, "1", "vertical shear: how level strokes rise")
    shift_px: float = _number(1.5, 0.0, 14.0, "px", "shift along each axis")
    elastic_px: float = _number(0.4, 0.0, 10.0, "px", "deviation of smooth random displacements")
    vertical: float = _number(
        1.5, 0.1, 10.0, "1", "shifts and elastic offsets along y over those along x"
    )
    blend: float = _number(
        0.8,
        0.0,
        2.0,
        "1",
        "how far a drawing drawn by pen turns into others at t = 1",
    )
    blend_from_t: float = _number(
        0.2, 0.0, 0.99, "1", "t from which drawings blend, in proportion to what t is above it"
    )
    blend_spread: float = _number(
        1.0, 0.0, 3.0, "1", "variety of what it turns into, over that of the drawings"
    )

    # The call
    seed: int = _number(0, 0, 2**63 - 1, "1", "of every random number in the call")
    precision: str = _choice("auto", ("auto", "fp32", "bf16"), "number format of a step")
    deadline_s: float = _number(117.0, 1.0, 1e6, "s", "wall clock after which the call returns")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        if self.lora_groups and not self.lora_rank:
            raise RecipeError(
                f"lora_groups is {list(self.lora_groups)} but lora_rank is 0; "
                "write a rank of 1 or more, or no groups"
            )
        if self.lora_rank and not self.lora_groups:
            raise RecipeError(
                f"lora_rank is {self.lora_rank} but lora_groups is empty; "
                f"name some of {', '.join(LORA_GROUPS)}, or write rank 0"
            )
        if not self.train_groups and not self.lora_groups:
            raise RecipeError(f"train_groups is empty; name some of {', '.join(GROUPS)}")

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @property
    def digest(self) -> str:
        """A digest of the values: twelve hexadecimal digits."""
        values = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(values.encode()).hexdigest()[:12]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The recipe with these values, and defaults for all other fields.

        Raises:
            RecipeError: a field is unknown, or a value is not allowed.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"fields are {', '.join(names)}"
                raise RecipeError(f"unknown recipe field {key!r}; {hint}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Inverse of `to_json`.

        Raises:
            RecipeError: the text is not a JSON object; or as in `from_dict`.
        """
        try:
            values = json.loads(text)
        except ValueError as error:  # JSONDecodeError, or an integer of too many digits
            raise RecipeError(f"recipe is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise RecipeError(f"recipe is a JSON {type(values).__name__}; write an object {{...}}")
        return cls.from_dict(values)


def _checked(f: dataclasses.Field[Any], value: Any) -> Any:
    """``value`` in the field's own type, or a RecipeError."""
    if "subset" in f.metadata:
        return _checked_subset(f, value)
    if "choices" in f.metadata:
        if value not in f.metadata["choices"]:
            raise RecipeError(
                f"{f.name} is {value!r}; write one of {', '.join(f.metadata['choices'])}"
            )
        return value
    low, high = f.metadata["range"]
    whole = isinstance(f.default, int)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not -math.inf < value < math.inf or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise RecipeError(f"{f.name} is {value!r}; write {kind} in [{low:g}, {high:g}]")
    if not low <= value <= high:
        raise RecipeError(f"{f.name} is {value!r}; write a value in [{low:g}, {high:g}]")
    return int(value) if whole else float(value)


def _checked_subset(f: dataclasses.Field[Any], value: Any) -> tuple[str, ...]:
    allowed = f.metadata["subset"]
    if not isinstance(value, (list, tuple)) or any(v not in allowed for v in value):
        raise RecipeError(f"{f.name} is {value!r}; write a list of some of {', '.join(allowed)}")
    return tuple(a for a in allowed if a in value)  # in a fixed order, without repeats
