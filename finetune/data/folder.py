"""A user's own drawings: a folder of PNG files, or a folder of such folders, one for each rune.

Drawings may be grey, in colour or black and white.  They are square, and all of one size from 28x28
on.  Drawings of 28x28 are used as they are, like the images that networks see.  All others become
bitmaps of 105x105, like Omniglot's: a drawing is resized with antialiasing, and a pixel is ink if
it is at least half as dark as the darkest.  So a black and white drawing of 105x105 is its own
bitmap, pencil counts as ink, and a line thinner than a pixel is not lost.  Strokes of a twentieth
of the drawing's width are as wide as Omniglot's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..canvas import BITMAP_SIZE, IMAGE_SIZE
from ..errors import UserError
from .png import drawing_paths, read_png

MIN_DRAWINGS = 2  # least drawings of a rune: one to train on, one to score on

_LIGHT = 127  # paper is lighter than this if strokes are black
_LEAST_CONTRAST = 64  # grey levels between strokes and paper
_EXPORT = "export it again as PNG"


def read_folder(directory: Path) -> dict[str, Tensor]:
    """Read a folder's drawings by rune: (n, 105, 105) uint8 with 1 = ink, or (n, 28, 28) uint8.

    Each folder in it is a rune of that name.  PNG files directly in it are one rune, named after
    the folder, with "_" for blanks.  Strokes may be black on white or white on black, because most
    pixels of a drawing are paper.  Hidden files and folders are ignored.

    Raises:
        UserError: the folder does not exist, it has no drawings or fewer than two of a rune, or a
            file is not a drawing; the message names the file.
    """
    directory = directory.expanduser()
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such folder; name by --drawings one that holds PNG files, "
            "or a folder of them for each rune"
        )
    try:
        found = _runes(directory)
    except OSError as error:
        raise UserError(f"{error.filename} can't be read ({error.strerror}); allow that") from error
    shape: tuple[int, int] | None = None
    runes = {}
    for name, paths in found.items():
        levels = []
        for path in paths:
            grey = read_png(path, _EXPORT)
            _check_shape(path, grey.shape, shape)
            shape = grey.shape
            levels.append(_to_drawing(path, grey))
        runes[name] = torch.stack(levels)
    return runes


def _runes(directory: Path) -> dict[str, list[Path]]:
    """Paths of each rune's drawings, two or more, sorted by name."""
    folders = sorted(p for p in directory.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = [path for path in drawing_paths(directory) if not path.is_dir()]
    if folders and loose:
        raise UserError(
            f"{directory} holds both folders and drawings, such as {loose[0].name}; "
            "put each drawing into its rune's folder"
        )
    if not folders and not loose:
        raise UserError(
            f"{directory} holds no drawings; put PNG files there, or a folder of them for each rune"
        )
    runes: dict[str, list[Path]] = {}
    named = directory if directory.name not in ("", "..") else directory.resolve()
    for folder in folders or [named]:
        # A blank would end the name in lists of runes.
        name = "_".join(folder.name.split())
        if name in runes:
            raise UserError(f"{folder} is another folder of rune {name}; rename one of them")
        runes[name] = paths = drawing_paths(folder)
        if len(paths) < MIN_DRAWINGS:
            raise UserError(
                f"{folder} holds {len(paths)} drawing{'' if len(paths) == 1 else 's'} (*.png); "
                "put two or more there: one to train on, one to score on"
            )
    return runes


def _check_shape(path: Path, shape: tuple[int, ...], others: tuple[int, int] | None) -> None:
    height, width = shape
    if height != width or width < IMAGE_SIZE:
        raise UserError(
            f"{path} has {width}x{height} pixels; make it a square of "
            f"{IMAGE_SIZE}x{IMAGE_SIZE} or more, best of {BITMAP_SIZE}x{BITMAP_SIZE}"
        )
    if others is not None and shape != others:
        raise UserError(
            f"{path} has {width}x{height} pixels and others have {others[1]}x{others[0]}; "
            "make all drawings of one size"
        )


def _to_drawing(path: Path, grey: NDArray[np.uint8]) -> Tensor:
    """A bitmap (105, 105) uint8 with 1 = ink, or an image (28, 28) uint8 with 255 = ink."""
    ink = 255 - grey if (grey > _LIGHT).mean() > 0.5 else grey
    low, high = int(ink.min()), int(ink.max())
    if high - low < _LEAST_CONTRAST:
        raise UserError(
            f"{path} is nearly blank, with grey levels from {grey.min()} to {grey.max()}; "
            "draw in black on white, or white on black"
        )
    if len(ink) == IMAGE_SIZE:
        return torch.from_numpy(ink.copy())
    levels = torch.from_numpy(ink.astype(np.float32))
    if len(ink) != BITMAP_SIZE:
        size = (BITMAP_SIZE, BITMAP_SIZE)
        levels = F.interpolate(levels[None, None], size, mode="bilinear", antialias=True)[0, 0]
    levels = levels - levels.min()
    bitmap = levels >= levels.max() / 2
    if bitmap.float().mean() >= 0.5:
        raise UserError(
            f"{path} has more ink than paper; draw in black on white, or white on black, "
            "on an even background"
        )
    return bitmap.to(torch.uint8)
