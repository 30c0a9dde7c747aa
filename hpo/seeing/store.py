"""Where the files that belong to trials are kept: a directory, or a bucket that speaks S3."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import parse_qs, urlsplit

from finetune.errors import UserError

if TYPE_CHECKING:
    from optuna.artifacts import Boto3ArtifactStore

ARTIFACTS_VARIABLE = "RUNES_ARTIFACTS"
NOWHERE = "none"

_SHAPE = "write a directory, s3://BUCKET, s3://BUCKET?endpoint=https://HOST, or none"
# Someone waits, a trial or a page; a store that is away is tried again later.
_CONNECT_S, _ANSWER_S = 5, 20
_ATTEMPTS = 2
_CHECKSUMS = "request_checksum_calculation"


class Store(Protocol):
    """Optuna's interface of a store; every error is an `OSError` or Optuna's `ArtifactNotFound`."""

    def open_reader(self, artifact_id: str) -> BinaryIO: ...

    def write(self, artifact_id: str, content_body: BinaryIO) -> None: ...

    def remove(self, artifact_id: str) -> None: ...


def default_place(study: str, storage_url: str) -> str:
    """Where a study's files are kept unless somebody says otherwise: beside its SQLite file.

    Raises:
        UserError: ``storage_url`` is no database URL.
    """
    from ..storage.compressed import plain_url
    from ..storage.url import parse_url

    parsed = parse_url(plain_url(storage_url))
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        file = Path(parsed.database.removeprefix("file:"))
        return str(file.with_name(f"{file.stem}-artifacts"))
    return f"{study.replace('/', '-')}-artifacts"


def check_place(place: str) -> None:
    """Whether ``place`` names a store, as far as that can be told without asking it.

    Raises:
        ValueError: it names none; says what to write.
    """
    parts = urlsplit(place)
    if not place.strip() or "\0" in place:
        raise ValueError(f"artifacts is {place!r}; {_SHAPE}")
    if "://" not in place:
        return
    unknown = set(parse_qs(parts.query, keep_blank_values=True)) - {"endpoint"}
    if parts.scheme != "s3" or not parts.netloc or parts.path not in ("", "/") or unknown:
        raise ValueError(f"artifacts is {place!r}; {_SHAPE}")
    if "@" in parts.netloc:
        # Study files are shared, and what is printed of them is not hidden.
        raise ValueError(
            "artifacts names an access key; leave it to AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or to ~/.aws"
        )


def check_directory(place: str | None) -> None:
    """Whether a place that somebody named to look at is there, if it is a directory.

    Raises:
        UserError: it is not.
    """
    if place and place != NOWHERE and "://" not in place and not Path(place).is_dir():
        raise UserError(f"--artifacts: {place} is no directory; write one that exists")


def open_store(place: str) -> Store | None:
    """The store at ``place``; None where nothing is kept.  It is not asked for anything yet.

    Raises:
        UserError: ``place`` names none, or what it needs is not installed.
    """
    try:
        check_place(place)
    except ValueError as error:
        raise UserError(str(error)) from error
    if place == NOWHERE:
        return None
    return _Bucket(place) if place.startswith("s3://") else _Folder(Path(place))


class _Folder:
    """A directory, made when the first file comes."""

    def __init__(self, path: Path) -> None:
        from optuna.artifacts import FileSystemArtifactStore

        self._path = path
        self._files = FileSystemArtifactStore(path)  # which keeps ids from leaving the directory

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return self._files.open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        try:
            self._files.write(artifact_id, content_body)
        except OSError:  # the disk is full, say: half of a file is of no use
            with suppress(Exception):
                self._files.remove(artifact_id)
            raise

    def remove(self, artifact_id: str) -> None:
        self._files.remove(artifact_id)


class _Bucket:
    """A bucket; keys and region are found where boto3 looks for them."""

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
        # Releases that send checksums unasked are not understood by all of Amazon's likes.
        if endpoint and _CHECKSUMS in Config.OPTION_DEFAULTS:
            options[_CHECKSUMS] = "when_required"
        config = Config(**options)
        self._errors = (BotoCoreError, ClientError, Boto3Error)
        try:
            client = boto3.client("s3", endpoint_url=endpoint, config=config)
        except (ValueError, BotoCoreError) as error:
            raise UserError(f"artifacts: {error}; {_SHAPE}") from error
        self._bucket: Boto3ArtifactStore = Boto3ArtifactStore(parts.netloc, client)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        try:
            # Whole: a server would hold a stream's connection until its browser has read it.
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
