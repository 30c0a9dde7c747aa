"""Store files with trials; a failure is logged once and harms no trial."""

from __future__ import annotations

import io
import json
import mimetypes
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from ..process.logging import warn
from .location import NOWHERE
from .store import open_store

# Prefix of a system attribute that links a file. Optuna's `upload_artifact` writes the same, but
# before the file is there.
ARTIFACT_PREFIX = "artifacts:"
_REST_S = 300.0  # pause after a failure, so that not every trial waits for a store that is away


@dataclass(frozen=True)
class Artifact:
    """A stored file; ``link`` has the system attributes that link it to its trial."""

    id: str
    link: dict[str, str] = field(repr=False)


def linked(artifact_id: str, filename: str) -> Artifact:
    """A stored file by its id, with the link for a trial."""
    from optuna.artifacts import ArtifactMeta  # which imports boto3 where that is installed

    mimetype, encoding = mimetypes.guess_type(filename)
    meta = ArtifactMeta(
        artifact_id=artifact_id,
        filename=filename,
        mimetype=mimetype or "application/octet-stream",
        encoding=encoding,
    )
    return Artifact(artifact_id, {f"{ARTIFACT_PREFIX}{artifact_id}": json.dumps(asdict(meta))})


class Gallery:
    """Stores files of trials at a place; failures are logged.

    Args:
        place: as in `hpo.artifacts.store.open_store`.

    Raises:
        UserError: the place does not name a store.
    """

    def __init__(self, place: str = NOWHERE) -> None:
        self._place = place
        self._store = open_store(place)
        self._told = False
        self._again_at = 0.0

    @property
    def is_on(self) -> bool:
        """Whether files are stored at all."""
        return self._store is not None

    def keep(self, filename: str, draw: Callable[[], bytes]) -> Artifact | None:
        """Draw a file and store it; None if files are not stored or that failed.

        Args:
            filename: its suffix tells the type of the file.
        """
        if self._store is None or time.monotonic() < self._again_at:
            return None
        artifact_id = str(uuid.uuid4())
        try:
            self._store.write(artifact_id, io.BytesIO(draw()))
        except Exception as error:
            self._again_at = time.monotonic() + _REST_S
            self._tell(error)
            return None
        return linked(artifact_id, filename)

    def _tell(self, error: Exception) -> None:
        if self._told:
            return
        self._told = True
        words = " ".join(str(error).split()) or type(error).__name__
        warn(
            f"pictures can't be kept in {self._place} ({words[:240]}); trials go on without them, "
            "and this is not said again"
        )
