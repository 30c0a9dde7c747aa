"""Events of the study's workers, and requests of people."""

from __future__ import annotations

from collections.abc import Iterator

from ...analysis.events import Event
from ...formatting import counted
from ...study.control import wishes_in
from ...study.workers import End, read_name
from ..data import StudyData
from ..document import Block, Section, Table, Text
from ..sanitize import plain

_MOST_ROWS = 20
_REASON = 160  # characters
# Ends of workers whose reason is shown. Other reasons may name people, files and hosts, which stay
# private, because the page is sent to others.
_OF_THE_STUDY = (End.FINISHED.value, End.BUDGET.value, End.LIMIT.value)


def events_section(data: StudyData) -> Section:
    """The last events of the study's workers, and the last requests of people."""
    blocks = [*_workers(data), *_controls(data)]
    return Section("events", "Events", blocks or [Text("No worker has joined yet.")])


def _workers(data: StudyData) -> Iterator[Block]:
    events = data.status.events
    if not events:
        return
    rows = [(_name(e), e.at or "unknown", _words(e)) for e in events[:_MOST_ROWS]]
    yield Table(
        _caption("event", len(events), "of workers, the newest first"),
        ("worker", "when (UTC)", "what"),
        rows,
    )
    if any(event.what == "lost" for event in events[:_MOST_ROWS]):
        yield Text("A worker was lost when its last heartbeat was.", aside=True)


def _controls(data: StudyData) -> Iterator[Block]:
    controls = wishes_in(data.attrs).controls
    if not controls:
        return
    yield Table(
        _caption("request", len(controls), "of people, the newest first"),
        ("what", "when (UTC)"),
        [(plain(c.words, _REASON), plain(c.at, _REASON)) for c in controls[: -_MOST_ROWS - 1 : -1]],
    )


def _caption(thing: str, n: int, more: str) -> str:
    if n > _MOST_ROWS:
        return f"The last {_MOST_ROWS} of {n} {thing}s {more}"
    return f"{counted(n, thing)} {more}"


def _name(event: Event) -> str:
    """A worker by its ordinal in the study, because its name would tell the host."""
    place = read_name(event.worker).place
    return "a worker" if place is None else f"worker {place}"


def _words(event: Event) -> str:
    says_why = bool(event.reason) and (event.what != "ended" or event.why in _OF_THE_STUDY)
    return plain(event.words + (f": {event.reason}" if says_why else ""), _REASON)
