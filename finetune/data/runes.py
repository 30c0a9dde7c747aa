"""Runes and digits: where they are found, how runes are resized, and how they are split.

Data is looked for in the directory named by ``--data`` or ``RUNES_DATA`` (torchvision's layout),
else in the user's cache; else it is downloaded there once.  If a directory is named, nothing is
written to it, and no other place is tried.  Runes may be of any alphabet of Omniglot, or a user's
own drawings (`finetune.data.folder`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..canvas import BITMAP_SIZE, IMAGE_SIZE, RESIZES, Resize
from ..errors import UserError
from .download import OMNIGLOT_PARTS, cache_directory, fetch_mnist, fetch_omniglot
from .folder import MIN_DRAWINGS, read_folder
from .futhorc import ALPHABET
from .mnist import missing_files
from .png import drawing_paths, read_png
from .synthetic import draw_rune, drawn_rune_names

DATA_VARIABLE = "RUNES_DATA"
NEW_LABEL = 10
N_DRAWINGS = 20  # drawings of a rune in Omniglot, and of a rune drawn by this project
N_TRAIN = 10  # drawings that the challenge's calls learn from


@dataclass(frozen=True, eq=False)
class RuneSource:
    """Bitmaps of runes with their source; a rune has n drawings, at least 2."""

    name: str  # "omniglot" (the Futhorc), "omniglot ALPHABET", "drawn" or "drawings" (a folder)
    # By rune: (n, 105, 105) uint8, 1 = ink, 0 = paper; or, from a folder of images of 28x28,
    # (n, 28, 28) uint8 of grey levels, 255 = ink.
    bitmaps: Mapping[str, Tensor]

    @property
    def runes(self) -> tuple[str, ...]:
        """Names of the runes, sorted."""
        return tuple(sorted(self.bitmaps))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names and pixels; it does not depend on where and how they are stored."""
        digest = hashlib.sha256()
        for rune in self.runes:
            bitmaps = self.bitmaps[rune]
            digest.update(f"{rune}{tuple(bitmaps.shape)}".encode())
            digest.update(bitmaps.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def mark(self, n_train: int | None = None) -> str:
        """Identifies the drawings and their split: the first 12 digits of the digest.

        If not all runes have ten drawings to train on, their number follows: "/5", or "/5-8" if it
        differs between runes.
        """
        # Not `train_count`, which raises for runes that are too small even if nobody uses them.
        counts = [len(b) // 2 if n_train is None else n_train for b in self.bitmaps.values()]
        low, high = min(counts), max(counts)
        split = "" if low == high == N_TRAIN else f"/{low}" if low == high else f"/{low}-{high}"
        return f"{self.digest[:12]}{split}"

    def drawings(self, rune: str, resize: Resize = "bilinear") -> Tensor:
        """The drawings of one rune, (n, 1, 28, 28) float32 in [0, 1], white on black.

        Drawings that are 28x28 already stay as they are, whatever the resize.

        Raises:
            UserError: no such rune, or no such resize.
        """
        if rune not in self.bitmaps:
            raise UserError(f"{self.name} has no rune {rune!r}; write one of {_join(self.runes)}")
        bitmaps = self.bitmaps[rune]
        if bitmaps.shape[-1] == IMAGE_SIZE:
            return bitmaps[:, None].float() / 255
        return resize_bitmaps(bitmaps, resize)

    def split(
        self, rune: str, resize: Resize = "bilinear", seed: int = 0, n_train: int | None = None
    ) -> Split:
        """The drawings of one rune, split by `split_drawings`.

        Raises:
            UserError: as in `drawings` and `split_drawings`, with the rune's name.
        """
        drawings = self.drawings(rune, resize)
        try:
            return split_drawings(drawings, seed, n_train)
        except UserError as error:
            raise UserError(f"{rune}: {error}") from error

    def check_bitmaps(self) -> None:
        """Check that there are bitmaps, which can be resized in any way.

        Raises:
            UserError: there are only images of 28x28.
        """
        if any(b.shape[-1] != BITMAP_SIZE for b in self.bitmaps.values()):
            raise UserError(
                f"the drawings are {IMAGE_SIZE}x{IMAGE_SIZE}, and here bitmaps are resized; "
                f"give them in {BITMAP_SIZE}x{BITMAP_SIZE}"
            )


def resize_bitmaps(bitmaps: Tensor, resize: Resize) -> Tensor:
    """Resize bitmaps (N, H, W) in {0, 1} to images (N, 1, 28, 28) float32 in [0, 1].

    ``bilinear`` uses four pixels for each new one, so thin strokes break up; ``antialiased``
    averages over all pixels that a new one covers; ``nearest`` stays two-valued.

    Raises:
        UserError: there is no such resize.
    """
    if resize not in RESIZES:
        raise UserError(f"resize is {resize!r}; write one of {_join(RESIZES)}")
    mode = "nearest" if resize == "nearest" else "bilinear"
    antialias = resize == "antialiased"
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return F.interpolate(bitmaps[:, None].float(), size, mode=mode, antialias=antialias)


@dataclass(frozen=True, eq=False)
class Split:
    """The drawings to adapt to and the drawings to score on, (n, 1, 28, 28) each."""

    train: Tensor
    test: Tensor


def train_count(n: int, n_train: int | None = None) -> int:
    """How many of a rune's ``n`` drawings to train on; None: half of them, rounded down.

    Raises:
        UserError: no drawing would be left to train on, or to score on.
    """
    count = n // 2 if n_train is None else n_train
    if n < MIN_DRAWINGS:
        raise UserError(f"{n} drawings; {MIN_DRAWINGS} or more can be split")
    if not 0 < count < n:
        instead = "1" if n == MIN_DRAWINGS else f"1 to {n - 1}"
        raise UserError(
            f"train is {count}, and of {n} drawings some must train and some score; write {instead}"
        )
    return count


def split_drawings(drawings: Tensor, seed: int, n_train: int | None = None) -> Split:
    """Split drawings (n, ...) in two, in an order that depends on ``n`` and ``seed`` alone.

    Args:
        n_train: how many are to train on; None: half of them, so 10 of 20.

    Raises:
        UserError: none would train, or none would be left to score on.
    """
    n = len(drawings)
    count = train_count(n, n_train)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    dealt = drawings[order]
    return Split(dealt[:count], dealt[count:])


class DrawingDataset(Dataset[tuple[Tensor, int]]):
    """Pairs (image (1, 28, 28), label), as ``finetune_model`` is given them."""

    def __init__(self, images: Tensor, label: int = NEW_LABEL) -> None:
        self.images = images
        self.label = label

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.label


def open_omniglot(
    data: Path | None = None, *, alphabet: str = ALPHABET, download: bool = True
) -> RuneSource:
    """An alphabet of Omniglot, with however many characters and drawings of each there are.

    Args:
        data: what ``--data`` says; None for ``RUNES_DATA``, else the cache.
        alphabet: a directory in images_background or images_evaluation.
        download: whether an empty cache may be filled from the official source, which is done
            with the Futhorc alone.

    Raises:
        UserError: an unknown alphabet, missing, corrupt, truncated or wrongly sized files, or a
            failed download.
    """
    named = data_directory(data)
    root = named or cache_directory()
    is_downloaded = named is None and alphabet == ALPHABET
    if is_downloaded and download:
        fetch_omniglot(root)
    directory = _find_alphabet(root, alphabet, is_named=named is not None)
    again = f"delete {directory} to have it downloaded again"
    remedy = again if is_downloaded else "copy it again"
    characters = sorted(path for path in directory.glob("character*") if path.is_dir())
    if not characters:
        raise UserError(f"{directory} holds no characterNN/*.png; {remedy}")
    name = "omniglot" if alphabet == ALPHABET else f"omniglot {alphabet}"
    return RuneSource(name, {path.name: _read_rune(path, remedy) for path in characters})


def _find_alphabet(root: Path, alphabet: str, *, is_named: bool) -> Path:
    """The directory of an alphabet below ``root``, a directory in torchvision's layout.

    Raises:
        UserError: there is none; lists the alphabets that there are.
    """
    parts = [root / part for part in OMNIGLOT_PARTS]
    known = {
        path.name: path
        for part in reversed(parts)
        if part.is_dir()
        for path in part.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    }
    if alphabet in known:
        return known[alphabet]
    or_name = f"name another directory by --data or {DATA_VARIABLE}"
    if known and (is_named or alphabet == ALPHABET):
        raise UserError(
            f"{parts[0].parent} has no alphabet {alphabet!r}; "
            f"write one of {', '.join(sorted(known))}, or {or_name}"
        )
    directory = parts[0] / alphabet if Path(alphabet).name == alphabet else parts[0]
    if is_named or alphabet == ALPHABET:
        raise UserError(
            f"{directory}: no such directory; put Omniglot's characterNN/*.png there, or {or_name}"
        )
    there = f"; {', '.join(sorted(known))} is there" if known else ""
    raise UserError(
        f"alphabet {alphabet!r} is not downloaded, only {ALPHABET} is{there}; put "
        f"{'/'.join(OMNIGLOT_PARTS[0].parts)}/{alphabet} into a directory and name it by --data "
        f"or {DATA_VARIABLE}"
    )


def open_folder(directory: Path) -> RuneSource:
    """A person's own drawings, as `finetune.data.folder.read_folder` reads them."""
    return RuneSource("drawings", read_folder(directory))


def open_drawn(seed: int = 0) -> RuneSource:
    """Runes drawn by this project, for demonstrations and tests: no file, no download."""
    return RuneSource(
        "drawn", {name: draw_rune(name, N_DRAWINGS, seed) for name in sorted(drawn_rune_names())}
    )


def open_source(
    name: str,
    data: Path | None,
    *,
    alphabet: str | None = None,
    drawings: Path | None = None,
) -> RuneSource:
    """The source called ``name``: "omniglot" or "drawn"; or the folder ``drawings``.

    Args:
        data: see `open_omniglot`.
        alphabet: of Omniglot; None: the Futhorc.
        drawings: see `open_folder`; None: no folder.

    Raises:
        UserError: two of them are asked for at once, or the data is missing or not usable.
    """
    asked = [
        option
        for option, is_asked in (
            ("--source drawn", name == "drawn"),
            ("--alphabet", alphabet is not None),
            ("--drawings", drawings is not None),
        )
        if is_asked
    ]
    if len(asked) > 1:
        raise UserError(f"{asked[0]} and {asked[1]} name different drawings; leave one out")
    if drawings is not None:
        return open_folder(drawings)
    return open_drawn() if name == "drawn" else open_omniglot(data, alphabet=alphabet or ALPHABET)


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
    """All drawings of one rune in the order of their file names, (n, 105, 105) uint8."""
    paths = drawing_paths(directory)
    if len(paths) < MIN_DRAWINGS:
        raise UserError(
            f"{directory} holds {len(paths)} drawing{'' if len(paths) == 1 else 's'} (*.png), and "
            f"{MIN_DRAWINGS} or more are needed; {remedy}"
        )
    return torch.stack([_read_bitmap(path, remedy) for path in paths])


def _read_bitmap(path: Path, remedy: str) -> Tensor:
    """One drawing, (105, 105) uint8, 1 = ink."""
    grey = read_png(path, remedy)
    if grey.shape != (BITMAP_SIZE, BITMAP_SIZE):
        height, width = grey.shape
        raise UserError(
            f"{path} has {width}x{height} pixels and not {BITMAP_SIZE}x{BITMAP_SIZE}; {remedy}"
        )
    ink = grey == 0
    if not (ink | (grey == 255)).all() or not 0 < ink.mean() < 0.5:
        raise UserError(f"{path} is not a drawing in black on white; {remedy}")
    return torch.from_numpy(ink.astype(np.uint8))


def _join(names: tuple[str, ...]) -> str:
    return ", ".join(names)
