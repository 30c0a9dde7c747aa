"""Runes and digits: where they are found, how runes are resized, and how they are split.

Data is looked for in the directory named by ``--data`` or ``RUNES_DATA`` (torchvision's
layout), else in the user's cache, else it is downloaded there once.  A named directory is
taken at its word: it is never written to, and never passed over for another.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..canvas import BITMAP_SIZE, IMAGE_SIZE, RESIZES, Resize
from ..errors import UserError
from .download import FUTHORC_DIR, cache_directory, fetch_mnist, fetch_omniglot
from .mnist import missing_files
from .synthetic import draw_rune, drawn_rune_names

DATA_VARIABLE = "RUNES_DATA"
NEW_LABEL = 10
N_DRAWINGS = 20


@dataclass(frozen=True, eq=False)
class RuneSource:
    """Bitmaps of runes and where they come from."""

    name: str  # "omniglot" or "drawn"
    bitmaps: Mapping[str, Tensor]  # rune -> (20, 105, 105) uint8, 1 = ink, 0 = paper

    @property
    def runes(self) -> tuple[str, ...]:
        """Names of the runes, sorted."""
        return tuple(sorted(self.bitmaps))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names and pixels: the same runes, wherever and however stored."""
        digest = hashlib.sha256()
        for rune in self.runes:
            bitmaps = self.bitmaps[rune]
            digest.update(f"{rune}{tuple(bitmaps.shape)}".encode())
            digest.update(bitmaps.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def drawings(self, rune: str, resize: Resize = "bilinear") -> Tensor:
        """The drawings of one rune, (20, 1, 28, 28) float32 in [0, 1], white on black.

        Raises:
            UserError: no such rune, or no such resize.
        """
        if rune not in self.bitmaps:
            raise UserError(f"{self.name} has no rune {rune!r}; write one of {_join(self.runes)}")
        return resize_bitmaps(self.bitmaps[rune], resize)


def resize_bitmaps(bitmaps: Tensor, resize: Resize) -> Tensor:
    """Bitmaps (N, H, W) in {0, 1} as images (N, 1, 28, 28) float32 in [0, 1].

    ``bilinear`` looks at four pixels for each new one, so thin strokes break up;
    ``antialiased`` averages over all that a new pixel covers; ``nearest`` stays two-valued.

    Raises:
        UserError: no such resize.
    """
    if resize not in RESIZES:
        raise UserError(f"resize is {resize!r}; write one of {_join(RESIZES)}")
    mode = "nearest" if resize == "nearest" else "bilinear"
    antialias = resize == "antialiased"
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return F.interpolate(bitmaps[:, None].float(), size, mode=mode, antialias=antialias)


@dataclass(frozen=True, eq=False)
class Split:
    """The drawings to adapt to and the drawings to score on, (10, 1, 28, 28) each."""

    train: Tensor
    test: Tensor


def split_drawings(drawings: Tensor, seed: int) -> Split:
    """Deal 20 drawings (20, ...) into 10 and 10, in an order fixed by ``seed`` alone.

    Raises:
        ValueError: not 20 drawings.
    """
    if len(drawings) != N_DRAWINGS:
        raise ValueError(f"{len(drawings)} drawings; {N_DRAWINGS} are split into 10 and 10")
    order = torch.randperm(N_DRAWINGS, generator=torch.Generator().manual_seed(seed))
    return Split(*drawings[order].chunk(2))


class DrawingDataset(Dataset[tuple[Tensor, int]]):
    """Pairs (image (1, 28, 28), label), as ``finetune_model`` is given them."""

    def __init__(self, images: Tensor, label: int = NEW_LABEL) -> None:
        self.images = images
        self.label = label

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.label


def open_omniglot(data: Path | None = None, *, download: bool = True) -> RuneSource:
    """Omniglot's Futhorc, with however many characters there are.

    Args:
        data: what ``--data`` says; None for ``RUNES_DATA``, else the cache.
        download: whether an empty cache may be filled from the official source.

    Raises:
        UserError: missing, corrupt, truncated or wrongly sized files, or a failed download.
    """
    named = data_directory(data)
    directory = (named or cache_directory()) / FUTHORC_DIR
    if named is None and download:
        fetch_omniglot(cache_directory())
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such directory; put Omniglot's characterNN/*.png there, "
            f"or name another directory by --data or {DATA_VARIABLE}"
        )
    remedy = "copy it again" if named else f"delete {directory} to have it downloaded again"
    characters = sorted(path for path in directory.glob("character*") if path.is_dir())
    if not characters:
        raise UserError(f"{directory} holds no characterNN/*.png; {remedy}")
    return RuneSource("omniglot", {path.name: _read_rune(path, remedy) for path in characters})


def open_drawn(seed: int = 0) -> RuneSource:
    """Runes drawn by this project, for demonstrations and tests: no file, no download."""
    return RuneSource(
        "drawn", {name: draw_rune(name, N_DRAWINGS, seed) for name in sorted(drawn_rune_names())}
    )


def open_source(name: str, data: Path | None) -> RuneSource:
    """The source called ``name``: "omniglot" or "drawn"."""
    return open_drawn() if name == "drawn" else open_omniglot(data)


def choose_runes(source: RuneSource, wanted: Sequence[str] | None, n: int) -> list[str]:
    """The runes that were asked for, or ``n`` spread evenly over all.

    Raises:
        UserError: a rune that the source does not have.
    """
    if not wanted:
        n = min(n, len(source.runes))
        return [source.runes[i * len(source.runes) // n] for i in range(n)]
    unknown = [rune for rune in wanted if rune not in source.runes]
    if unknown:
        raise UserError(f"no rune {unknown[0]!r}; write some of {', '.join(source.runes)}")
    return list(wanted)


def find_mnist(data: Path | None = None, *, download: bool = True) -> Path:
    """The directory that holds ``MNIST/raw``, for ``finetune.data.mnist.load_mnist``.

    Arguments as for ``open_omniglot``.

    Raises:
        UserError: a file is missing, or a failed download.
    """
    named = data_directory(data)
    directory = named or cache_directory()
    if named is None and download:
        fetch_mnist(directory)
    missing = missing_files(directory)
    if missing:
        raise UserError(
            f"{missing[0]}[.gz]: no such file; put it there, "
            f"or name another directory by --data or {DATA_VARIABLE}"
        )
    return directory


def data_directory(option: Path | None) -> Path | None:
    """The directory that the user named: ``--data`` beats ``RUNES_DATA``; None for neither.

    Raises:
        UserError: there is no such directory.
    """
    named = option or os.environ.get(DATA_VARIABLE)
    if not named:
        return None
    directory = Path(os.path.expanduser(named))  # a variable set in a file still has its ~
    if not directory.is_dir():
        raise UserError(
            f"{directory}, named by {'--data' if option else DATA_VARIABLE}, is no directory; "
            "name one that holds omniglot-py and MNIST, or name none to have them downloaded"
        )
    return directory


def _read_rune(directory: Path, remedy: str) -> Tensor:
    """All drawings of one rune in the order of their file names, (20, 105, 105) uint8."""
    # Copying from a Mac may leave a "._NAME.png" beside each drawing.
    paths = sorted(path for path in directory.glob("*.png") if not path.name.startswith("."))
    if len(paths) != N_DRAWINGS:
        raise UserError(
            f"{directory} holds {len(paths)} drawings (*.png) and not {N_DRAWINGS}; {remedy}"
        )
    return torch.stack([_read_bitmap(path, remedy) for path in paths])


def _read_bitmap(path: Path, remedy: str) -> Tensor:
    """One drawing, (105, 105) uint8, 1 = ink."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); {remedy}") from error
    try:
        # Decoding alone ignores the checksums that PNG carries.
        Image.open(io.BytesIO(raw), formats=["PNG"]).verify()
        image = Image.open(io.BytesIO(raw), formats=["PNG"])
        size = image.size
        grey = np.asarray(image.convert("L")) if size == (BITMAP_SIZE, BITMAP_SIZE) else None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is not a whole PNG file; {remedy}") from error
    if grey is None:
        raise UserError(
            f"{path} has {size[0]}x{size[1]} pixels and not {BITMAP_SIZE}x{BITMAP_SIZE}; {remedy}"
        )
    ink = grey == 0
    if not (ink | (grey == 255)).all() or not 0 < ink.mean() < 0.5:
        raise UserError(f"{path} is not a drawing in black on white; {remedy}")
    return torch.from_numpy(ink.astype(np.uint8))


def _join(names: tuple[str, ...]) -> str:
    return ", ".join(names)
