"""Keeps a study's note and plots fresh: by whoever finishes a trial, one worker in a minute."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import optuna
import sqlalchemy as sa

from ..analysis.status import status_of
from ..process.logging import warn
from ..report.plotly import study_figures
from ..report.summary_markdown import study_note
from ..storage.rdb import StudyStorage
from ..storage.tables import FINISHED, STUDIES, STUDY_SYSTEM_ATTRS
from ..study.config import StudyConfig
from .attrs import NOTE_TEXT, NOTE_VERSION, PLOT, STORY_AT, STORY_VERSION

EVERY_S = 60.0
_REST = 50  # times as long as the last one took: large studies take seconds
_OURS = f"{PLOT}hpo-"
_ATTRS = STUDY_SYSTEM_ATTRS.c


class Story:
    """Writes a study's note and plots.

    Args:
        asked: the study as the person named it.
        url: where it is.
    """

    def __init__(
        self, config: StudyConfig, asked: str, url: str, study: optuna.Study, storage: StudyStorage
    ) -> None:
        self._config, self._asked, self._url = config, asked, url
        self._study, self._storage = study, storage
        self._told = False
        self._took_s = 0.0

    def refresh(self, every_s: float | None = None) -> bool:
        """Write both, unless somebody did so in the last ``every_s``; whether it did.

        By default that is a minute, or more where it takes long.
        What goes wrong is told once, and is no reason for a worker to stop.
        """
        study_id, transact = self._study._study_id, self._storage.transact
        try:
            wait_s = max(EVERY_S, _REST * self._took_s) if every_s is None else every_s
            if not transact(lambda c: take_turn(c, study_id, time.time(), wait_s)):
                return False
            started = time.monotonic()
            note, plots = self._tell()
            transact(lambda c: write_story(c, study_id, note, plots))
            self._took_s = time.monotonic() - started
        except Exception as error:
            if not self._told:
                warn(f"the study's note and plots can't be written: {error!r}")
            self._told = True
            return False
        return True

    def _tell(self) -> tuple[str, dict[str, str]]:
        trials = self._study.get_trials(deepcopy=False, states=FINISHED)
        status = status_of(self._config, self._url, trials, (), datetime.now(UTC), best=1)
        note = study_note(self._config, self._asked, status, trials, self._study.user_attrs)
        mattering = [i.name for i in status.importances] or list(self._config.space)
        figures = study_figures(self._config, trials, mattering)
        plots = {
            name: json.dumps(figure, separators=(",", ":"), allow_nan=False)
            for name, figure in figures.items()
        }
        return note, plots


def take_turn(c: sa.Connection, study_id: int, now_s: float, every_s: float) -> bool:
    """Whether nobody wrote the story in the last ``every_s``; then it is this worker's to write.

    Workers' clocks may differ: a turn in the future is none.
    """
    _lock(c, study_id)
    at_s = _read(c, study_id, STORY_AT).get(STORY_AT)
    if at_s is not None and abs(now_s - float(at_s)) < every_s:
        return False
    _put(c, study_id, {STORY_AT: now_s})
    return True


def write_story(c: sa.Connection, study_id: int, note: str, plots: Mapping[str, str]) -> None:
    """Replace the note and the plots of this service; a note that a person wrote stays."""
    _lock(c, study_id)
    known = _read(c, study_id, NOTE_VERSION, NOTE_TEXT, _OURS, STORY_VERSION)
    version = int(known.get(NOTE_VERSION, 0))
    pieces = sorted(key for key in known if key.startswith(NOTE_TEXT))
    is_ours = version == known.get(STORY_VERSION) or not any(known[key] for key in pieces)
    attrs: dict[str, Any] = {f"{PLOT}{name}:0": text for name, text in plots.items()}
    stale = [key for key in known if key.startswith(_OURS) and key not in attrs]
    if is_ours:
        attrs |= {NOTE_VERSION: version + 1, STORY_VERSION: version + 1, f"{NOTE_TEXT}0": note}
        stale += [key for key in pieces if key != f"{NOTE_TEXT}0"]
    _put(c, study_id, attrs, stale)


def _lock(c: sa.Connection, study_id: int) -> None:
    # A write that changes nothing: PostgreSQL locks the row, SQLite the file, until the end.
    name = STUDIES.c.study_name
    c.execute(sa.update(STUDIES).where(STUDIES.c.study_id == study_id).values({name: name}))


def _read(c: sa.Connection, study_id: int, *prefixes: str) -> dict[str, Any]:
    query = sa.select(_ATTRS.key, _ATTRS.value_json).where(
        _ATTRS.study_id == study_id,
        sa.or_(*(_ATTRS.key.startswith(prefix, autoescape=True) for prefix in prefixes)),
    )
    return {key: json.loads(value) for key, value in c.execute(query)}


def _put(
    c: sa.Connection, study_id: int, attrs: Mapping[str, Any], stale: list[str] | None = None
) -> None:
    gone = [*attrs, *(stale or ())]
    c.execute(
        sa.delete(STUDY_SYSTEM_ATTRS).where(_ATTRS.study_id == study_id, _ATTRS.key.in_(gone))
    )
    rows = [{"study_id": study_id, "key": k, "value_json": json.dumps(v)} for k, v in attrs.items()]
    c.execute(sa.insert(STUDY_SYSTEM_ATTRS), rows)
