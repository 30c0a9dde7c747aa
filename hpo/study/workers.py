"""A worker's own row in its study: when it joined, when it ended and why.

A lost worker can't store its end. Whoever finds the loss stores it with the trial
(`hpo.trial.record.Attempt`).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..storage.rdb import StudyStorage
from ..storage.workers import PREFIX
from ..trial.stored import Moment, Remark, Stored, read_stored

_MOST_CHARACTERS = 200  # a longer reason is cut
_NAME = re.compile(r"(?P<host>.+):(?P<process>\d+)(?:#(?P<place>\d+))?", re.ASCII)
_MOST_DIGITS = 18  # of a number in a worker's name; Python refuses to parse thousands


class End(enum.Enum):
    """Why a worker ended."""

    FINISHED = "finished"  # all trials of the budget are finished
    BUDGET = "budget spent"  # another part of the budget is spent
    LIMIT = "limit"  # the worker's own time is over
    STOPPED = "stopped"  # by hpo.stop
    INTERRUPTED = "interrupted"  # by a signal
    FAILED = "failed"  # too many trials in a row failed
    ERROR = "error"


class WorkerEntry(Stored):
    """A worker's row; the worker's name is in the row's key."""

    joined: Moment | None = None
    ended: Moment | None = None
    why: str | None = None
    """A value of `End`, or another release's word."""
    reason: str = ""

    def end(self, why: End, reason: str) -> WorkerEntry:
        """This entry with the worker's end, now."""
        line = next(iter(reason.splitlines()), "")[:_MOST_CHARACTERS]
        changes = {"ended": now(), "why": why.value, "reason": line}
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class WorkerName:
    """The parts of a worker's name, ``HOST:PID#PLACE``; None: the name is another program's."""

    host: str | None = None
    process: int | None = None
    place: int | None = None  # the worker's ordinal in the study, from 0


def read_name(name: str) -> WorkerName:
    """Parse a worker's name."""
    found = _NAME.fullmatch(name)
    numbers = (found["process"], found["place"] or "") if found else ()
    if found is None or any(len(digits) > _MOST_DIGITS for digits in numbers):
        return WorkerName()
    place = None if found["place"] is None else int(found["place"])
    return WorkerName(found["host"], int(found["process"]), place)


def join_now(storage: StudyStorage, study_id: int) -> WorkerEntry:
    """Store that the storage's worker joins the study now; returns the entry.

    Raises:
        StudyGoneError: the study was deleted.
    """
    entry = WorkerEntry(joined=now())
    storage.write_entry(study_id, entry.to_json())
    return entry


def entries_in(attrs: Mapping[str, Any]) -> tuple[dict[str, WorkerEntry], list[Remark]]:
    """Read the entries, by worker, from a study's user attributes; with remarks on bad ones."""
    entries: dict[str, WorkerEntry] = {}
    remarks: list[Remark] = []
    for key in sorted(key for key in attrs if key.startswith(PREFIX)):
        entry, more = read_stored(WorkerEntry, attrs[key], [key])
        remarks += more
        if entry is not None:
            entries[key.removeprefix(PREFIX)] = entry
    return entries, remarks


def now() -> datetime:
    """The current time by this machine's clock."""
    return datetime.now(UTC)
