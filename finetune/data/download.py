"""Downloads from the official sources into the user's cache, in torchvision's layout.

A file gets its final name only after its checksum is verified, and the directory of runes only
after all are unpacked.  So everything in the cache under its final name is complete.  Two processes
that fetch at the same time may both download, without harm.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pooch
from requests.exceptions import RequestException

from ..errors import UserError
from .futhorc import ALPHABET
from .mnist import RAW_DIR

# Directory of the alphabets, which have a directory each.
OMNIGLOT_PARTS = (Path("omniglot-py/images_background"), Path("omniglot-py/images_evaluation"))
FUTHORC_DIR = OMNIGLOT_PARTS[0] / ALPHABET
RETRIES = 2


@dataclass(frozen=True)
class Download:
    """Files of one web site and their MD5 checksums, as torchvision knows them."""

    title: str
    base_url: str  # ends in "/"
    md5: Mapping[str, str]  # file name -> hexadecimal digits


OMNIGLOT = Download(
    "Omniglot",
    "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
    {"images_background.zip": "68d2efa1b9178cc56df9314c21c6e718"},
)
MNIST = Download(
    "MNIST",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)


def cache_directory() -> Path:
    """The user's cache directory, which may not exist yet; ~/.cache/runes on Linux."""
    return Path(pooch.os_cache("runes"))


def fetch_omniglot(cache: Path, source: Download = OMNIGLOT) -> None:
    """Download the Futhorc into ``cache`` unless it is there; the rest of the archive is not kept.

    Raises:
        UserError: the download failed or can't be stored; the cache is unchanged.
    """
    target = cache / FUTHORC_DIR
    if target.is_dir():
        return
    (archive,) = source.md5
    with _reporting(source, cache, f"{FUTHORC_DIR}/characterNN/*.png"):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="incoming-") as scratch:
            _download(source, Path(scratch))
            with zipfile.ZipFile(Path(scratch) / archive) as packed:
                prefix = f"{FUTHORC_DIR.relative_to('omniglot-py').as_posix()}/"
                packed.extractall(scratch, [n for n in packed.namelist() if n.startswith(prefix)])
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                (Path(scratch) / prefix).rename(target)
            except OSError:
                if not target.is_dir():  # otherwise another process was first
                    raise


def fetch_mnist(cache: Path, source: Download = MNIST) -> None:
    """Download MNIST's four files into ``cache`` unless they are there and undamaged.

    Raises:
        UserError: the download failed or can't be stored; no broken file is left.
    """
    with _reporting(source, cache, f"{RAW_DIR}/*-ubyte[.gz]"):
        _download(source, cache / RAW_DIR)


def _download(source: Download, directory: Path) -> None:
    """Download the files that are missing in ``directory`` or have a wrong checksum."""
    registry = {name: f"md5:{md5}" for name, md5 in source.md5.items()}
    fetcher = pooch.create(directory, source.base_url, registry=registry, retry_if_failed=RETRIES)
    for name in source.md5:
        fetcher.fetch(name, progressbar=True)


@contextmanager
def _reporting(source: Download, cache: Path, layout: str) -> Iterator[None]:
    """Turn errors of pooch and the file system into one line that says what to do."""
    instead = f"put {layout} into a directory and name it by --data or RUNES_DATA"
    try:
        yield
    except RequestException as error:
        raise UserError(
            f"can't download {source.title} from {source.base_url} ({_reason(error)}); "
            f"try again, or {instead}"
        ) from error
    except ValueError as error:  # pooch's error for a wrong checksum
        raise UserError(
            f"what came from {source.base_url} is not {source.title}: its checksum is wrong, "
            f"so it was deleted; try again, or {instead}"
        ) from error
    except OSError as error:
        raise UserError(
            f"can't store {source.title} in {cache} ({error.strerror or error}); "
            f"make that directory writable, with room, or {instead}"
        ) from error


def _reason(error: RequestException) -> str:
    """The innermost cause in a few words."""
    if error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    words = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return " ".join(words.split())[:200] or type(cause).__name__
