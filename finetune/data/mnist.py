"""MNIST's digits from torchvision's layout (``MNIST/raw``), compressed or not."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

RAW_DIR = Path("MNIST/raw")
_UBYTE = 0x08
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),
}


def missing_files(directory: Path) -> list[Path]:
    """MNIST's files that ``directory`` has neither plain nor compressed."""
    names = [name for images, labels, _ in FILES.values() for name in (images, labels)]
    paths = [directory / RAW_DIR / name for name in names]
    return [path for path in paths if not path.exists() and not _packed(path).exists()]


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes, ``path`` or ``path.gz``.

    Raises:
        UserError: the file is missing, unreadable, corrupt, truncated or of another type.
    """
    packed = _packed(path)
    try:
        if path.exists():
            raw = path.read_bytes()
        elif packed.exists():
            path = packed
            raw = gzip.decompress(packed.read_bytes())
        else:
            raise UserError(f"{path}[.gz]: no such file; copy it there or name another --data")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is corrupt ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise UserError(
            f"{path} can't be read ({error.strerror}); make it readable, or name another --data"
        ) from error
    if len(raw) < 4 or raw[:3] != bytes([0, 0, _UBYTE]):
        raise UserError(f"{path} is not an IDX file of bytes; delete it and fetch it again")
    n_dims = raw[3]
    shape = struct.unpack_from(f">{n_dims}I", raw, 4) if len(raw) >= 4 + 4 * n_dims else ()
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape))
    if not shape or body.size != int(np.prod(shape, dtype=np.int64)):
        raise UserError(
            f"{path} is truncated: {body.size} bytes for shape {shape}; "
            "delete it and fetch it again"
        )
    return body.reshape(shape)


def load_mnist(directory: Path, split: str) -> tuple[Tensor, Tensor]:
    """Digits of ``split`` ("train" or "test"): images (N, 1, 28, 28) uint8 and labels (N,) long.

    ``directory`` is the one that holds ``MNIST/raw``.

    Raises:
        UserError: a file is missing, corrupt, truncated or of the wrong size.
    """
    image_name, label_name, n = FILES[split]
    images = read_idx(directory / RAW_DIR / image_name)
    labels = read_idx(directory / RAW_DIR / label_name)
    if images.shape != (n, 28, 28) or labels.shape != (n,):
        raise UserError(
            f"{directory / RAW_DIR}: {split} has images {images.shape} and labels {labels.shape}; "
            f"expected ({n}, 28, 28) and ({n},); delete these two files and fetch them again"
        )
    return torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.copy()).long()


def digits_digest(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of the digits of one split, as ``load_mnist`` returns them."""
    digest = hashlib.sha256(images.contiguous().numpy().tobytes())
    digest.update(labels.to(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _packed(path: Path) -> Path:
    return path.with_name(path.name + ".gz")
