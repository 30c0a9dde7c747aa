"""Databases of finished studies as they are published: a SQLite file, compressed by gzip."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError

_SUFFIX = ".gz"
_SCHEME = "sqlite:///"


def is_published(storage: str) -> bool:
    """Whether a storage is a compressed file, ``FILE.db.gz`` or ``sqlite:///FILE.db.gz``."""
    return storage.endswith(_SUFFIX) and ("://" not in storage or storage.startswith(_SCHEME))


def plain_url(storage: str) -> str:
    """The URL of the database that ``storage`` would be, unpacked where it lies."""
    if not is_published(storage):
        return storage
    return _SCHEME + storage.removeprefix(_SCHEME).removesuffix(_SUFFIX)


@contextmanager
def unpacked(storage: str) -> Iterator[str]:
    """The URL to look at: of a compressed file that of a copy, which is gone afterwards.

    Any other storage is given back as it is.

    Raises:
        UserError: there is no such file, or it can't be unpacked.
    """
    if not is_published(storage):
        yield storage
        return
    path = Path(storage.removeprefix(_SCHEME))
    directory = Path(tempfile.mkdtemp(prefix="hpo-"))
    try:
        copy = directory / path.name.removesuffix(_SUFFIX)
        try:
            with gzip.open(path) as packed, copy.open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or "it is no whole gzip file"
            raise UserError(f"{storage} can't be unpacked: {reason}") from error
        yield f"{_SCHEME}{copy}"
    finally:
        _remove(directory)


def _remove(directory: Path) -> None:
    """Remove it with all in it, though a thread may be at work there.

    A server that is stopped leaves its threads behind.  Where one opens the copy just then, SQLite
    adds files beside it; under another name none is added after the directory was listed.
    """
    shutil.rmtree(directory.rename(directory.with_name(f"{directory.name}-removed")))
