"""The ways in which a drawing of 105x105 may have become one of 28x28."""

from __future__ import annotations

from typing import Literal, get_args

Resize = Literal["bilinear", "antialiased", "nearest"]
RESIZES: tuple[Resize, ...] = get_args(Resize)
