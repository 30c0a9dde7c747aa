"""Retries: pauses, lines in the log, and what ends them."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from finetune.errors import UserError
from hpo.process import signals
from hpo.process.signals import StopError
from hpo.storage import retry
from hpo.storage.retry import Retry


class OperationalError(Exception):
    """Named as the driver's error for a connection that failed."""


CUT = sa.exc.OperationalError("x", {}, OperationalError("server closed the connection"))


def failing(times: int, error: Exception) -> Callable[[], str]:
    """An operation that fails so many times and then succeeds."""
    left = [error] * times

    def operation() -> str:
        if left:
            raise left.pop()
        return "done"

    return operation


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, in seconds, which are not waited for."""
    pauses: list[float] = []
    monkeypatch.setattr(retry, "_pause", pauses.append)
    return pauses


def test_pauses_grow_to_ten_seconds_and_are_spread_out(pauses: list[float]) -> None:
    for _ in range(20):
        assert Retry("db", 60.0).call(failing(12, CUT)) == "done"
    for i, longest_s in enumerate([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, *[10.0] * 5]):
        some = pauses[i::12]
        assert all(longest_s / 2 <= pause_s <= longest_s for pause_s in some)
        assert len(set(some)) == 20


def test_only_a_trouble_that_lasts_is_logged(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    assert Retry("db", 60.0).call(failing(3, CUT)) == "done"
    assert caplog.messages == []
    assert Retry("db", 60.0).call(failing(6, CUT)) == "done"
    *troubles, end = caplog.messages
    assert f"warning: db: server closed the connection; trying again in {pauses[-1]:.1f} s" in (
        troubles
    )
    assert end == "warning: db: answers again after 0 s"


def test_a_trouble_that_lasts_too_long_is_one_line(pauses: list[float]) -> None:
    with pytest.raises(UserError, match=r"^db: server closed .*; gave up after 0 s$"):
        Retry("db", 0.0).call(failing(1, CUT))
    assert pauses == []


def test_what_will_not_pass_is_not_tried_again(pauses: list[float]) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    with pytest.raises(UserError, match=r"^db: database or disk is full; free space on its disk$"):
        Retry("db", 60.0).call(failing(1, sa.exc.OperationalError("x", {}, full)))
    assert pauses == []


@pytest.mark.parametrize(
    "error", [ValueError("bad"), sa.exc.IntegrityError("x", {}, sqlite3.IntegrityError("twice"))]
)
def test_errors_of_the_data_are_raised_as_they_are(error: Exception, pauses: list[float]) -> None:
    with pytest.raises(type(error)) as raised:
        Retry("db", 60.0).call(failing(1, error))
    assert raised.value is error
    assert pauses == []


def test_a_process_that_was_asked_to_stop_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_pending", StopError(signal.SIGTERM))
    operation = failing(1, CUT)
    with pytest.raises(StopError):
        Retry("db", 60.0).call(operation)
    assert operation() == "done"  # the failing attempt was the only one
