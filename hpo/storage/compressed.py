"""Published databases of finished studies: SQLite files compressed by gzip."""

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
    """The URL that the database would have if it were unpacked beside the compressed file."""
    if not is_published(storage):
        return storage
    return _SCHEME + storage.removeprefix(_SCHEME).removesuffix(_SUFFIX)


@contextmanager
def unpacked(storage: str) -> Iterator[str]:
    """Unpack a compressed database into a temporary copy and yield the copy's URL.

    Any other storage is yielded as it is.

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
    """Remove the directory with its files, though another thread may still use them.

    A server that is stopped leaves its threads behind.  If one of them opens the copy just then,
    SQLite adds files beside it.  So the directory is renamed first: no files are added after that.
    """
    shutil.rmtree(directory.rename(directory.with_name(f"{directory.name}-removed")))
