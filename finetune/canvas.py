"""The canvases that drawings live on: Omniglot's bitmaps and the images that networks see."""

from __future__ import annotations

from typing import Literal, get_args

BITMAP_SIZE = 105  # pixels a side, as drawn
IMAGE_SIZE = 28  # pixels a side, as networks see them
PEN_RADIUS = 2.5  # pixels of the bitmap, whoever draws

# The resizes in which data is made here; what others may have done: `augment.resizing`.
Resize = Literal["bilinear", "antialiased", "nearest"]
RESIZES: tuple[Resize, ...] = get_args(Resize)
