"""Check that a database and its studies are still the ones that a process began with.

SQLite gives the id of a deleted study to the next one, and a connection outlives the name of its
file. Without this check a process would go on in another study, or in a deleted file.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from .dialects import IN_MEMORY, dialect_of
from .errors import StudyGoneError


@dataclass(frozen=True)
class Identity:
    """Identifies a study among all studies in all databases."""

    name: str
    token: str  # random


class Presence:
    """Checks that a storage makes before it reads or writes.

    Args:
        engine: engine of the database; its file exists.
        name: the database's name without passwords.
    """

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._name = name
        self._file = dialect_of(engine).file(engine.url)
        self._known_file = self._file_now()
        self._studies: dict[int, Identity] = {}

    def keep(self, study_id: int, identity: Identity) -> None:
        """From now on check this study and the database's file."""
        self._studies[study_id] = identity

    def token(self, study_id: int) -> str | None:
        """The token of a study that is checked; None for other studies."""
        known = self._studies.get(study_id)
        return known.token if known else None

    def check_file(self) -> None:
        """Check that the database's file is still the same.

        Raises:
            StudyGoneError: it was removed or replaced, and one of its studies is checked.
        """
        if self._studies and self._file_now() != self._known_file:
            raise StudyGoneError(
                f"{self._name}: the file was removed or replaced while this process used it; "
                "put it back, or start again"
            )

    def gone(self, study_id: int) -> StudyGoneError | None:
        """The error to raise for a study that was not found; None if it is not checked."""
        if (known := self._studies.get(study_id)) is None:
            return None
        return StudyGoneError(
            f"{self._name}: study {known.name} was deleted while this process used it; "
            "start again to make a new one"
        )

    def _file_now(self) -> tuple[int, int] | None:
        """Device and inode of the database's file; None if there is none."""
        if self._file is None or self._file == IN_MEMORY:
            return None
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return None
        except OSError:  # the disk does not answer, so nothing is known of the file
            return self._known_file
        return found.st_dev, found.st_ino
