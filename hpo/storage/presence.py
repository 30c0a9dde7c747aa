"""Whether a database and its studies are still those that a process began with.

SQLite gives the id of a deleted study to the next one, and a connection to a file outlives the
file's name. A process that does not look goes on in another study, or in a file that nobody sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from .dialects import IN_MEMORY, dialect_of
from .errors import StudyGoneError


@dataclass(frozen=True)
class Identity:
    """What tells a study from any other, in every database."""

    name: str
    token: str  # random


class Presence:
    """What a storage checks before it reads or writes.

    Args:
        engine: of a database whose file is there.
        name: the database's, as it may be printed.
    """

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._name = name
        self._file = dialect_of(engine).file(engine.url)
        self._known_file = self._file_now()
        self._studies: dict[int, Identity] = {}

    def keep(self, study_id: int, identity: Identity) -> None:
        """Check this study from now on, and the file with it."""
        self._studies[study_id] = identity

    def token(self, study_id: int) -> str | None:
        """The token of a study that is checked; None for any other."""
        known = self._studies.get(study_id)
        return known.token if known else None

    def check_file(self) -> None:
        """Look whether the file is the same one.

        Raises:
            StudyGoneError: it was removed or replaced, and a study of it is checked.
        """
        if self._studies and self._file_now() != self._known_file:
            raise StudyGoneError(
                f"{self._name}: the file was removed or replaced while this process used it; "
                "put it back, or start again"
            )

    def gone(self, study_id: int) -> StudyGoneError | None:
        """The error for a study that was not found; None if it is not checked."""
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
        except OSError:  # a disk that does not answer says nothing about the file
            return self._known_file
        return found.st_dev, found.st_ino
