"""Answers that are prepared say what unprepared ones say."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpo.dashboard import storage
from hpo.dashboard.app import LiveDashboard
from hpo.dashboard.response_cache import Prepared
from hpo.dashboard.server import Address, guard
from hpo.storage.open import load_study, open_storage

Ask = Callable[..., Any]
HERE = Address("127.0.0.1", "127.0.0.1", 8080, socket.AF_INET)


class Growing:
    """A study to which trials are added, in the order that a search would."""

    def __init__(self, url: str) -> None:
        self.storage = open_storage(url, worker="me")
        self.storage.create_study("s", {}, [])
        self.study = load_study(self.storage, "s", optuna.samplers.RandomSampler(seed=0))

    def begin(self) -> optuna.Trial:
        trial_id = self.storage.claim(self.study._study_id, None)
        assert isinstance(trial_id, int)
        trial = optuna.Trial(self.study, trial_id)
        with self.storage.batch(trial_id):
            trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        return trial

    def end(self, trial: optuna.Trial) -> None:
        self.storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.5])


@pytest.fixture
def study(tmp_path: Path) -> Growing:
    return Growing(f"sqlite:///{tmp_path}/s.db")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], LiveDashboard]]:
    opened: list[LiveDashboard] = []

    def serve() -> LiveDashboard:
        opened.append(LiveDashboard(f"sqlite:///{tmp_path}/s.db", "s", "start"))
        return opened[-1]

    yield serve
    for live in opened:
        live.close()


@pytest.fixture
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dashboard keeps what it read for two seconds or more; here it keeps nothing."""
    from optuna_dashboard import _app

    def get_trials(cache: Any, storage: Any, study_id: int) -> Any:
        trials = storage.get_all_trials(study_id, deepcopy=False)
        cache._trials_cache[study_id] = trials
        return trials

    monkeypatch.setattr(_app, "get_trials", get_trials)


def plain(serve: Callable[[], LiveDashboard], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A dashboard whose answers are not prepared."""
    with monkeypatch.context() as patch:
        patch.setattr(Prepared, "apply", lambda self, view, route: view)
        return guard(serve(), HERE)


@pytest.mark.usefixtures("looks_each_time")
def test_they_are_the_same_while_the_study_grows(
    study: Growing,
    serve: Callable[[], LiveDashboard],
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared = guard(serve(), HERE)
    running: list[optuna.Trial] = []
    for step in range(8):
        running.append(study.begin())
        if step in (1, 2, 5, 6):
            study.end(running.pop(0))
        if step == 4:
            study.study.set_user_attr("about", "it")
        fresh = plain(serve, monkeypatch)
        for after in ("", "?after=0", "?after=2", f"?after={step}", "?after=99"):
            url = f"/api/studies/1{after}"
            expected = ask(fresh, url).json
            for _ in range(2):
                answer = ask(prepared, url)
                assert answer.headers["content-type"] == "application/json"
                assert answer.json == expected, (step, after)


@pytest.mark.usefixtures("looks_each_time")
def test_a_finished_trial_that_changes_is_shown_as_it_is(
    study: Growing,
    serve: Callable[[], LiveDashboard],
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(3):
        study.end(study.begin())
    monkeypatch.setattr(storage, "_REST", 0.0)  # all is read each time
    app = guard(serve(), HERE)
    for _ in range(3):
        before = ask(app, "/api/studies/1").json["trials"]
    assert before[1]["user_attrs"] == []
    import sqlalchemy as sa

    with study.storage.engine.begin() as c:
        c.execute(
            sa.text(
                "insert into trial_user_attributes (trial_id, key, value_json) "
                "values (2, 'later', '1')"
            )
        )
    after = ask(app, "/api/studies/1").json["trials"]
    assert after[1]["user_attrs"] == [{"key": "later", "value": "1"}]
    assert [after[0], after[2]] == [before[0], before[2]]


def test_finished_trials_are_put_into_json_once(
    study: Growing,
    serve: Callable[[], LiveDashboard],
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from optuna_dashboard import _serializer

    for _ in range(5):
        study.end(study.begin())
    study.begin()
    numbers: list[int] = []
    whole = _serializer.serialize_frozen_trial

    def counting(study_id: int, trial: Any, attrs: Any) -> Any:
        numbers.append(trial.number)
        return whole(study_id, trial, attrs)

    live = serve()
    live.prepare()
    monkeypatch.setattr(_serializer, "serialize_frozen_trial", counting)
    assert len(ask(guard(live, HERE), "/api/studies/1").json["trials"]) == 6
    assert numbers == [5, 0]  # the one that runs, and the best


def test_what_is_wrong_with_a_request_is_still_said(
    study: Growing, serve: Callable[[], LiveDashboard], ask: Ask
) -> None:
    study.end(study.begin())
    app = guard(serve(), HERE)
    assert ask(app, "/api/studies/1?after=-1").status == 400
    assert ask(app, "/api/studies/77").status == 404
    assert serve().prepare() is None  # type: ignore[func-returns-value]


def test_answers_are_kept_however_long_the_first_one_took(
    study: Growing, serve: Callable[[], LiveDashboard], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the dashboard itself has kept of the study is too old by the time of each request."""
    for _ in range(3):
        study.end(study.begin())
    study.begin()
    live = serve()
    made: list[int] = []
    learn = Prepared._learn

    def counted(self: Prepared, study_id: int, known: Any, seen: Any, texts: Any) -> None:
        made.append(len(texts))
        learn(self, study_id, known, seen, texts)

    monkeypatch.setattr(Prepared, "_learn", counted)
    app = guard(live, HERE)
    answers = []
    for _ in range(3):
        live.app._inmemory_cache._trials_cache.clear()  # type: ignore[attr-defined]
        answers.append(ask(app, "/api/studies/1").json["trials"])
    assert answers[0] == answers[1] == answers[2] and len(answers[0]) == 4
    assert made == [4, 1, 1]  # texts of finished trials are made once
