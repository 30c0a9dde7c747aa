"""Stores of the files that belong to trials: a directory, or a bucket with the S3 protocol."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import parse_qs, urlsplit

from ..errors import UserError
from .location import NOWHERE, SHAPE, check_place

if TYPE_CHECKING:
    from optuna.artifacts import Boto3ArtifactStore


# Short, because a trial or a page waits; a store that is away is tried again later.
_CONNECT_S, _ANSWER_S = 5, 20
_ATTEMPTS = 2
_CHECKSUMS = "request_checksum_calculation"


class Store(Protocol):
    """Optuna's interface of a store. Errors are `OSError` or Optuna's `ArtifactNotFound` only."""

    def open_reader(self, artifact_id: str) -> BinaryIO: ...

    def write(self, artifact_id: str, content_body: BinaryIO) -> None: ...

    def remove(self, artifact_id: str) -> None: ...


def open_store(place: str) -> Store | None:
    """Make the store at ``place`` without contacting it; None if no files are to be stored.

    Raises:
        UserError: ``place`` does not name a store, or a package that it needs is not installed.
    """
    try:
        check_place(place)
    except ValueError as error:
        raise UserError(str(error)) from error
    if place == NOWHERE:
        return None
    return _Bucket(place) if place.startswith("s3://") else _Folder(Path(place))


class _Folder:
    """A directory, which is created with the first file."""

    def __init__(self, path: Path) -> None:
        from optuna.artifacts import FileSystemArtifactStore

        self._path = path
        self._files = FileSystemArtifactStore(path)  # rejects ids that point out of the directory

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return self._files.open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        try:
            self._files.write(artifact_id, content_body)
        except OSError:  # such as a full disk; half a file is of no use
            with suppress(Exception):
                self._files.remove(artifact_id)
            raise

    def remove(self, artifact_id: str) -> None:
        self._files.remove(artifact_id)


class _Bucket:
    """A bucket. Keys and region come from where boto3 looks for them."""

    def __init__(self, place: str) -> None:
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise UserError(
                f"{place} needs boto3: pip install -e '.[s3]'; or name a directory"
            ) from error
        from boto3.exceptions import Boto3Error
        from optuna.artifacts import Boto3ArtifactStore

        parts = urlsplit(place)
        endpoint = parse_qs(parts.query).get("endpoint", [None])[0]
        options: dict[str, Any] = {
            "connect_timeout": _CONNECT_S,
            "read_timeout": _ANSWER_S,
            "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
        }
        # Newer releases of boto3 send checksums by default, which some S3-compatible stores reject.
        if endpoint and _CHECKSUMS in Config.OPTION_DEFAULTS:
            options[_CHECKSUMS] = "when_required"
        config = Config(**options)
        self._errors = (BotoCoreError, ClientError, Boto3Error)
        try:
            client = boto3.client("s3", endpoint_url=endpoint, config=config)
        except (ValueError, BotoCoreError) as error:
            raise UserError(f"artifacts: {error}; {SHAPE}") from error
        self._bucket: Boto3ArtifactStore = Boto3ArtifactStore(parts.netloc, client)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        try:
            # Read whole: a stream would hold its connection until the browser has read it.
            return io.BytesIO(self._bucket.open_reader(artifact_id).read())
        except self._errors as error:
            raise OSError(str(error)) from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        try:
            self._bucket.write(artifact_id, content_body)
        except self._errors as error:
            raise OSError(str(error)) from error

    def remove(self, artifact_id: str) -> None:
        try:
            self._bucket.remove(artifact_id)
        except self._errors as error:
            raise OSError(str(error)) from error
