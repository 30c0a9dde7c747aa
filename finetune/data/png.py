"""PNG files of drawings: find them, and read their grey levels."""

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
    """The PNG files in a directory, sorted by name."""
    # Copying from a Mac may leave a "._NAME.png" beside each drawing.
    return sorted(
        path
        for path in directory.iterdir()
        if path.suffix.lower() == ".png" and not path.name.startswith(".")
    )


def read_png(path: Path, remedy: str) -> NDArray[np.uint8]:
    """Read grey levels (H, W), 0 = black; transparent pixels count as white paper.

    Args:
        remedy: advice in the message for a file that can't be read.

    Raises:
        UserError: the file can't be read, is damaged, or is not a PNG file.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); {remedy}") from error
    try:
        # Decoding alone ignores PNG's checksums.
        Image.open(io.BytesIO(raw), formats=["PNG"]).verify()
        return _grey(Image.open(io.BytesIO(raw), formats=["PNG"]))
    except _BROKEN as error:
        raise UserError(f"{path} is not a whole PNG file; {remedy}") from error


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits, which a conversion would clip at 255
        levels: NDArray[np.uint8] = np.rint(np.asarray(image) / 257).astype(np.uint8)
        return levels
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(image.convert("L"))
