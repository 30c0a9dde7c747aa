"""PNG files of drawings: which there are, and their grey levels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def drawing_paths(directory: Path) -> list[Path]:
    """The PNG files in a directory, by their names."""
    # Copying from a Mac may leave a "._NAME.png" beside each drawing.
    return sorted(
        path
        for path in directory.iterdir()
        if path.suffix.lower() == ".png" and not path.name.startswith(".")
    )


def read_png(path: Path, remedy: str) -> NDArray[np.uint8]:
    """Grey levels (H, W), 0 = black; what is transparent is on white paper.

    Args:
        remedy: what a person is to do about a file that can't be read.

    Raises:
        UserError: it can't be read, or is damaged or no PNG file.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); {remedy}") from error
    try:
        # Decoding alone ignores the checksums that PNG carries.
        Image.open(io.BytesIO(raw), formats=["PNG"]).verify()
        return _grey(Image.open(io.BytesIO(raw), formats=["PNG"]))
    except _BROKEN as error:
        raise UserError(f"{path} is not a whole PNG file; {remedy}") from error


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits, which conversion would cut off at 255
        levels: NDArray[np.uint8] = np.rint(np.asarray(image) / 257).astype(np.uint8)
        return levels
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(image.convert("L"))
