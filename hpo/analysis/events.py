"""Events of a study's workers: who joined, who ended and why, who was lost.

Workers store when they join and end. Losses are read from trials and from heartbeats. A worker of
an older release has stored nothing, so its first trial tells when it was there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from ..storage.recovery import Heartbeat
from ..study.workers import WorkerEntry, entries_in, read_name
from ..trial.outcome import Outcome
from ..trial.run import Run
from ..trial.stored import Remark

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Event:
    """An event in the life of a worker."""

    # ISO 8601, UTC. For a lost worker its last heartbeat; null: an older release did not store it.
    at: str | None
    worker: str  # its name, HOST:PID#PLACE
    host: str | None  # null if the name is of another form
    process: int | None
    what: Literal["joined", "ended", "lost"]
    why: str | None = None  # of a worker that ended: a value of `hpo.study.workers.End`
    trial: int | None = None  # the trial that a lost worker had
    reason: str = ""

    @property
    def words(self) -> str:
        """The event in words, without time and worker."""
        if self.what == "joined":
            return "joined"
        if self.what == "ended":
            return "ended" if self.why is None else f"ended ({self.why})"
        return "was lost" if self.trial is None else f"was lost with trial {self.trial}"

    def __str__(self) -> str:
        when = "at an unknown time" if self.at is None else f"at {self.at}"
        return f"{self.worker} {self.words} {when}" + (f": {self.reason}" if self.reason else "")


def events_of(
    attrs: Mapping[str, Any],
    runs: Sequence[Run],
    beats: Sequence[Heartbeat],
    grace_s: float,
    now: datetime,
) -> tuple[list[Event], list[Remark]]:
    """The events of a study's workers, newest first, with remarks on unreadable ones.

    Args:
        attrs: user attributes of the study.
        runs: all trials of the study.
        beats: heartbeats of the running trials.
        grace_s: a worker whose heartbeat is older is lost.
        now: when the heartbeats were read.
    """
    entries, remarks = entries_in(attrs)
    found = [*_stored(entries), *_first_trials(runs, entries), *_lost(runs)]
    found += _silent(beats, grace_s, now)
    # Events of the same moment stay in the order in which they were found.
    found.sort(key=lambda dated: dated[0] or _LONG_AGO)
    return [event for _, event in reversed(found)], remarks


_Dated = tuple[datetime | None, Event]


def _dated(at: datetime | None, worker: str, what: Any, **more: Any) -> _Dated:
    name = read_name(worker)
    text = None if at is None else at.astimezone(UTC).isoformat(timespec="seconds")
    return at and at.astimezone(UTC), Event(text, worker, name.host, name.process, what, **more)


def _stored(entries: Mapping[str, WorkerEntry]) -> Iterator[_Dated]:
    for worker, entry in entries.items():
        if entry.joined is not None:
            yield _dated(entry.joined, worker, "joined")
        if entry.ended is not None:
            yield _dated(entry.ended, worker, "ended", why=entry.why, reason=entry.reason)


def _first_trials(runs: Sequence[Run], entries: Mapping[str, WorkerEntry]) -> Iterator[_Dated]:
    """First trials of workers without a row, which are of an older release."""
    first: dict[str, Run] = {}
    for run in runs:
        worker, start = run.record.worker, run.trial.datetime_start
        if worker is None or start is None or worker in entries or run.record.taken_from:
            continue
        known = first.get(worker)
        if known is None or start < (known.trial.datetime_start or start):
            first[worker] = run
    for worker, run in first.items():
        reason = f"or earlier; its trial {run.number} began then"
        yield _dated(run.trial.datetime_start, worker, "joined", reason=reason)


def _lost(runs: Sequence[Run]) -> Iterator[_Dated]:
    for run in runs:
        if run.record.taken_from:  # it was run in another study
            continue
        for i, attempt in enumerate(run.record.attempts, start=1):
            is_last = i == len(run.record.attempts)
            has_failed = is_last and run.outcome == Outcome.LOST_WORKER.value
            reason = "the trial failed" if has_failed else "the trial was queued again"
            if attempt.lost:
                yield _dated(attempt.at, attempt.worker, "lost", trial=run.number, reason=reason)


def _silent(beats: Sequence[Heartbeat], grace_s: float, now: datetime) -> Iterator[_Dated]:
    for beat in beats:
        if beat.age_s > grace_s:
            at = now - timedelta(seconds=beat.age_s)
            reason = "no worker has taken the trial yet"
            yield _dated(at, beat.worker, "lost", trial=beat.number, reason=reason)
