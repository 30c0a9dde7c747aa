"""What happened to workers, from what they stored, from trials and from heartbeats."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from hpo.analysis.events import Event, events_of
from hpo.storage.recovery import Heartbeat
from hpo.study.workers import WorkerName, read_name
from hpo.trial.run import runs_of

NOW = datetime(2026, 1, 15, 12, 0, 0, tzinfo=UTC)


def at(minute: int) -> str:
    """As rows have it."""
    return (NOW - timedelta(minutes=60 - minute)).isoformat(timespec="milliseconds")


def told(minute: int) -> str:
    """As events have it."""
    return (NOW - timedelta(minutes=60 - minute)).isoformat(timespec="seconds")


def trial(number: int, minute: int, state: TrialState, **attrs: Any) -> FrozenTrial:
    value = 0.1 if state == TrialState.COMPLETE else None
    made = optuna.trial.create_trial(state=state, value=value, user_attrs=attrs)
    made.number = made._trial_id = number
    start = NOW - timedelta(minutes=60 - minute)
    made.datetime_start = start.astimezone().replace(tzinfo=None)  # as Optuna shows it
    return made


def lost(worker: str, minute: int | None = None) -> dict[str, Any]:
    attempt = {"worker": worker, "why": "lost worker", "lost": True, "calls": 0, "seconds": 1.0}
    return attempt if minute is None else {**attempt, "at": at(minute)}


def events(
    attrs: dict[str, Any],
    trials: Sequence[FrozenTrial] = (),
    beats: Sequence[Heartbeat] = (),
) -> list[Event]:
    found, remarks = events_of(attrs, runs_of(trials), beats, 60.0, NOW)
    assert remarks == []
    return found


def test_joining_and_ending_are_told_with_host_and_process_the_newest_first() -> None:
    attrs = {
        "worker:vm:30#0": {"joined": at(1), "ended": at(9), "why": "limit", "reason": "60 s are"},
        "worker:vm:31#1": {"joined": at(5)},
        "manifest": {"code": "x"},
    }
    limit, second, first = events(attrs)
    ended = {"what": "ended", "why": "limit", "reason": "60 s are"}
    assert limit == Event(told(9), "vm:30#0", "vm", 30, **ended)  # type: ignore[arg-type]
    assert second == Event(told(5), "vm:31#1", "vm", 31, "joined")
    assert first == Event(told(1), "vm:30#0", "vm", 30, "joined")
    assert str(limit) == f"vm:30#0 ended (limit) at {told(9)}: 60 s are"


def test_a_loss_is_told_with_its_last_heartbeat_and_what_became_of_the_trial() -> None:
    attempts = [lost("vm:30#0", 3), {**lost("vm:31#1", 4), "lost": False}, lost("vm:32#2", 8)]
    trials = [
        trial(0, 9, TrialState.COMPLETE, attempts=attempts),
        trial(1, 9, TrialState.FAIL, attempts=attempts[:1], outcome="lost worker"),
    ]
    assert list(map(str, events({}, trials))) == [
        f"vm:32#2 was lost with trial 0 at {told(8)}: the trial was queued again",
        f"vm:30#0 was lost with trial 1 at {told(3)}: the trial failed",
        f"vm:30#0 was lost with trial 0 at {told(3)}: the trial was queued again",
    ]


def test_who_is_silent_for_longer_than_the_grace_is_lost_before_anybody_took_the_trial() -> None:
    beats = [
        Heartbeat(i, i, f"vm:{i}#{i}", NOW, age_s) for i, age_s in enumerate([59.0, 61.0, 600.0])
    ]
    found = events({}, beats=beats)
    assert [(e.worker, e.trial, e.what) for e in found] == [
        ("vm:1#1", 1, "lost"),
        ("vm:2#2", 2, "lost"),
    ]
    assert found[1].at == told(50)
    assert found[1].reason == "no worker has taken the trial yet"


def test_of_an_older_release_the_first_trial_says_when_a_worker_was_there() -> None:
    complete = TrialState.COMPLETE
    trials = [
        trial(0, 20, complete, worker="old:1#0", attempts=[lost("old:9#2")]),
        trial(1, 10, complete, worker="old:1#0"),
        trial(2, 15, complete, worker="new:1#1"),
        trial(3, 1, complete, worker="else:1#0", taken_from="other/3", attempts=[lost("else:2")]),
    ]
    found = events({"worker:new:1#1": {"joined": at(14)}}, trials)
    assert list(map(str, found)) == [
        f"new:1#1 joined at {told(14)}",
        f"old:1#0 joined at {told(10)}: or earlier; its trial 1 began then",
        "old:9#2 was lost with trial 0 at an unknown time: the trial was queued again",
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (7, "worker:x should be an object"),
        ({"joined": 7}, "worker:x.joined should be a time in ISO 8601 with its offset from UTC"),
        ({"joined": "2026-01-15T12:00:00"}, "worker:x.joined should be a time"),
        ({"ended": "yesterday"}, "worker:x.ended should be a time"),
        ({"ended": "0001-01-01T00:00:00+23:00"}, "worker:x.ended should be a time"),
        ({"why": [1]}, "worker:x.why should be a valid string"),
    ],
)
def test_a_foreign_row_is_a_remark_and_the_others_are_told(row: Any, problem: str) -> None:
    attrs = {"worker:x": row, "worker:vm:1#0": {"joined": at(1)}}
    found, (remark,) = events_of(attrs, [], [], 60.0, NOW)
    assert [e.worker for e in found] == ["vm:1#0"]
    assert problem in str(remark)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.datetimes()
    .map(datetime.isoformat),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)  # fmt: skip
ROWS = JSON | st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("joined", "ended", "why", "reason", "other"), JSON)
)


@given(st.dictionaries(st.text(max_size=12).map("worker:{}".format), ROWS, max_size=3))
def test_whatever_is_in_the_rows_they_are_read(attrs: dict[str, Any]) -> None:
    found, _ = events_of(attrs, [], [], 60.0, NOW)
    moments = [datetime.fromisoformat(e.at) for e in found if e.at is not None]
    assert len(moments) == len(found)
    assert all(a >= b for a, b in itertools.pairwise(moments))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("vm:30#2", WorkerName("vm", 30, 2)),
        ("vm:30", WorkerName("vm", 30, None)),
        ("a:b:30#0", WorkerName("a:b", 30, 0)),
        ("me", WorkerName()),
        ("vm:x#1", WorkerName()),
        ("vm:" + "9" * 5000, WorkerName()),
        ("", WorkerName()),
    ],
)
def test_a_name_is_taken_apart(name: str, parts: WorkerName) -> None:
    assert read_name(name) == parts
