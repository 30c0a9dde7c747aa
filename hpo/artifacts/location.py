"""The place of a study's files: its default, and which names are valid."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ..errors import UserError

NOWHERE = "none"
SHAPE = "write a directory, s3://BUCKET, s3://BUCKET?endpoint=https://HOST, or none"


def default_place(study: str, storage_url: str) -> str:
    """The default place of a study's files: beside its SQLite file.

    Raises:
        UserError: ``storage_url`` is no database URL.
    """
    from ..storage.compressed import plain_url
    from ..storage.url import IN_MEMORY, sqlite_file

    file = sqlite_file(plain_url(storage_url))
    if file is not None and file != IN_MEMORY:
        return str(file.with_name(f"{file.stem}-artifacts"))
    return f"{study.replace('/', '-')}-artifacts"


def check_place(place: str) -> None:
    """Check that ``place`` names a store, without contacting it.

    Raises:
        ValueError: it does not; the message says what to write.
    """
    parts = urlsplit(place)
    if not place.strip() or "\0" in place:
        raise ValueError(f"artifacts is {place!r}; {SHAPE}")
    if "://" not in place:
        return
    unknown = set(parse_qs(parts.query, keep_blank_values=True)) - {"endpoint"}
    if parts.scheme != "s3" or not parts.netloc or parts.path not in ("", "/") or unknown:
        raise ValueError(f"artifacts is {place!r}; {SHAPE}")
    if "@" in parts.netloc:
        # Study files are shared, and what is printed of them is not hidden.
        raise ValueError(
            "artifacts names an access key; leave it to AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or to ~/.aws"
        )


def check_directory(place: str | None) -> None:
    """Check that a place that a user wants to look at exists, if it is a directory.

    Raises:
        UserError: it does not exist.
    """
    if place and place != NOWHERE and "://" not in place and not Path(place).is_dir():
        raise UserError(f"--artifacts: {place} is no directory; write one that exists")
