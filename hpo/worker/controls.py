"""How a worker obeys what people ask of its study: pause, resume, stop."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..process.logging import info
from ..storage.rdb import StudyStorage
from ..study.control import Control, Wishes, read_wishes

_SELDOM_S = 0.2  # least time between two queries of the controls
_POLL_S = 0.5


class StudyStoppedError(Exception):
    """Somebody asked the study's workers to stop.  The message says who."""


class Controls:
    """Reads the controls of a study between calls.

    A request to stop from before this worker joined is ignored.

    Args:
        forget: called when a trial was dropped or restored, to drop what is cached of it.
    """

    def __init__(self, storage: StudyStorage, study_id: int, forget: Callable[[], None]) -> None:
        self._storage, self._study_id, self._forget = storage, study_id, forget
        self._wishes = read_wishes(storage, study_id)
        self._stopped = self._wishes.stopped
        self._looked_at = time.monotonic()
        self._said: Control | None = None

    def obey(self, check: Callable[[], None], show: Callable[[str], None], now: bool) -> Wishes:
        """Wait while the study is paused; returns the study's current controls.

        Args:
            check: called while it waits; it may raise.
            show: shows a line instead of the trial's.
            now: query at once, even if the last query was a moment ago.

        Raises:
            StudyStoppedError: somebody asked the workers to stop.
        """
        if not now and time.monotonic() - self._looked_at < _SELDOM_S:
            return self._wishes
        self._look()
        while (paused := self._wishes.paused) is not None:
            if paused != self._said:
                info(f"waiting: {paused}")
                self._said = paused
            show("paused")
            check()
            time.sleep(_POLL_S)
            self._look()
        if self._said is not None:
            info("going on: the study is not paused any more")
            self._said = None
        return self._wishes

    def _look(self) -> None:
        known, self._wishes = self._wishes, read_wishes(self._storage, self._study_id)
        self._looked_at = time.monotonic()
        if known.dropped != self._wishes.dropped:
            self._storage.forget_trials(self._study_id)
            self._forget()
        if self._wishes.stopped > self._stopped:
            raise StudyStoppedError(str(self._wishes.controls[self._wishes.stopped - 1]))
