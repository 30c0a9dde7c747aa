"""What every storage promises to workers; each test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from hpo.errors import UserError
from hpo.storage.calls import CallRow
from hpo.storage.errors import TrialTakenError
from hpo.storage.open import load_study, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.storage.tables import HEARTBEATS, STATE_INDEX, WORKER_KEY
from hpo.storage.transactions import NoTrial
from hpo.storage.url import parse_url

REPO = Path(__file__).parents[3]


def plain(url: str) -> optuna.Study:
    """The study as Optuna alone sees it."""
    engine_url = parse_url(url).render_as_string(hide_password=False)
    return optuna.load_study(study_name="s", storage=optuna.storages.RDBStorage(engine_url))


@pytest.fixture
def storage(url: str) -> StudyStorage:
    storage = open_storage(url, worker="me")
    assert storage.create_study("s", {"manifest": {"data": "x"}}, [{"x": 0.25}, {"x": 0.5}])
    return storage


@pytest.fixture
def study(storage: StudyStorage) -> optuna.Study:
    return load_study(storage, "s", optuna.samplers.RandomSampler(seed=0))


def claim(storage: StudyStorage, study: optuna.Study, budget: int | None = None) -> optuna.Trial:
    trial_id = storage.claim(study._study_id, budget)
    assert isinstance(trial_id, int)
    return optuna.Trial(study, trial_id)


def finish(storage: StudyStorage, trial: optuna.Trial, value: float = 1.0) -> None:
    storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [value])


# -- studies ---------------------------------------------------------------------------------


def test_fifty_processes_open_an_empty_database_in_the_same_instant(
    empty_url: str, tmp_path: Path
) -> None:
    script = """
import os, sys, time
from hpo.storage.open import open_storage, load_study
# What a process does once, or each of them would, at its own speed.
import psycopg
open_storage(sys.argv[2]).engine.dispose()
start = time.time() + 0.5
children = []
for i in range(50):
    if (pid := os.fork()) == 0:
        code = 1
        try:
            time.sleep(max(0.0, start - time.time()))
            storage = open_storage(sys.argv[1])
            storage.create_study("s", {"manifest": {"by": i}}, [{"x": 1.0}])
            ordinal = storage.join(load_study(storage, "s")._study_id)
            os.write(1, f"{ordinal}\\n".encode())
            code = 0
        finally:
            os._exit(code)
    children.append(pid)
sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in children))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, empty_url, f"sqlite:///{tmp_path}/other.db"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPO)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Everybody joined, and nobody is told the same place as another.
    assert sorted(map(int, done.stdout.split())) == list(range(50))
    assert len(plain(empty_url).trials) == 1  # the starting recipe, queued once


def test_a_study_is_created_once_with_all_that_belongs_to_it(
    url: str, storage: StudyStorage
) -> None:
    again = open_storage(url)
    assert not again.create_study("s", {"manifest": {"data": "y"}}, [{"x": 0.9}])
    seen = plain(url)
    assert seen.user_attrs == {"manifest": {"data": "x"}}
    assert seen.direction == optuna.study.StudyDirection.MINIMIZE
    assert [t.state for t in seen.trials] == [TrialState.WAITING] * 2
    assert [t.system_attrs["fixed_params"] for t in seen.trials] == [{"x": 0.25}, {"x": 0.5}]


def test_a_study_that_is_not_there_is_one_line_that_lists_those_that_are(
    storage: StudyStorage,
) -> None:
    with pytest.raises(UserError, match="has no study 'runes'; it has: s"):
        load_study(storage, "runes")


# -- claims ----------------------------------------------------------------------------------


def test_queued_recipes_come_first_and_in_their_order(
    storage: StudyStorage, study: optuna.Study
) -> None:
    xs = []
    for _ in range(3):
        trial = claim(storage, study)
        xs.append(trial.suggest_float("x", 0, 1))
        finish(storage, trial)
    assert xs[:2] == [0.25, 0.5]
    assert [t.number for t in study.trials] == [0, 1, 2]


def test_many_claimers_never_pass_the_budget_and_never_share_a_trial(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    claimed: list[tuple[int, str]] = []
    study_id = study._study_id

    def work(name: str) -> None:
        mine = open_storage(url, worker=name)
        while (trial_id := mine.claim(study_id, 20)) is not NoTrial.SPENT:
            if isinstance(trial_id, int):
                claimed.append((trial_id, name))
                mine.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.0])

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(claimed) == len({trial_id for trial_id, _ in claimed}) == 20
    assert sorted(t.number for t in study.trials) == list(range(20))
    assert all(t.state == TrialState.COMPLETE for t in study.trials)


def test_a_budget_that_the_running_trials_may_spend_is_full_and_then_spent(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    first = claim(storage, study, budget=1)
    other = open_storage(url, worker="other")
    assert other.claim(study._study_id, 1) is NoTrial.FULL
    finish(storage, first)
    assert other.claim(study._study_id, 1) is NoTrial.SPENT
    assert isinstance(other.claim(study._study_id, 2), int)


def test_claims_are_counted_right_beside_another_study_and_optunas_own_queue(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    other = open_storage(url, worker="other")
    assert other.create_study("t", {}, [{"x": 0.5}] * 4)
    finish(storage, claim(storage, study, 4))  # two were queued
    plain(url).enqueue_trial({"x": 0.75})
    other_study = load_study(other, "t", optuna.samplers.RandomSampler(seed=0))
    finish(other, claim(other, other_study))
    xs = []
    while not isinstance(claimed := storage.claim(study._study_id, 4), NoTrial):
        xs.append(optuna.Trial(study, claimed).suggest_float("x", 0, 1))
        storage.set_trial_state_values(claimed, TrialState.COMPLETE, [0.0])
    assert claimed is NoTrial.SPENT
    assert xs[:2] == [0.5, 0.75]
    assert [t.number for t in plain(url).trials] == [0, 1, 2, 3]


def test_a_claim_looks_at_no_more_trials_when_more_are_finished(
    storage: StudyStorage, study: optuna.Study
) -> None:
    trial = optuna.trial.create_trial(value=1.0)
    for _ in range(300):
        storage.create_new_trial(study._study_id, trial)
    said: list[tuple[str, Any]] = []
    engine = storage.engine
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.exec_driver_sql("ANALYZE")
    listen = engine, "before_cursor_execute", lambda *a: said.append((a[2], a[3]))
    sa.event.listen(*listen)
    finish(storage, claim(storage, study, 400))  # of a queue, of which one is left
    claim(storage, study, 400)
    storage.worker = "another"
    claim(storage, study, 400)
    sa.event.remove(*listen)
    looks = [s for s in said if s[0].startswith("SELECT") and "trials" in s[0]]
    assert len(looks) >= 3
    is_sqlite = engine.dialect.name == "sqlite"
    with engine.connect() as c:
        if not is_sqlite:  # which reads a small table whole, as that is quicker
            c.exec_driver_sql("SET enable_seqscan = off")
        for statement, values in looks:
            explain = "EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN "
            plan = str(c.exec_driver_sql(explain + statement, values).all())
            assert "SCAN trials" not in plan.replace("SCAN trials USING", ""), plan
            assert "Seq Scan" not in plan, plan
            if "state" in statement.partition("WHERE")[2]:
                assert STATE_INDEX in plan


# -- writes ----------------------------------------------------------------------------------

_NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=32)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def facts(trial: optuna.trial.FrozenTrial) -> dict[str, str]:
    """All of a trial as text, whatever the order of its attributes; NaN equals NaN there.

    Optuna alone shows the attribute that names a trial's worker, too.
    """
    facts = dict(vars(trial), params=trial.params, distributions=trial.distributions)
    facts["_system_attrs"] = {k: v for k, v in trial.system_attrs.items() if k != WORKER_KEY}
    return {k: str(sorted(v.items()) if isinstance(v, dict) else v) for k, v in facts.items()}


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a database is slow to shrink on
)
@given(
    reports=st.dictionaries(st.integers(0, 50), _NUMBERS, max_size=5),
    attrs=st.dictionaries(_KEYS, _JSON, max_size=4),
    value=st.floats(-1e30, 1e30) | st.just(float("inf")),
    x=st.floats(0, 1),
    choice=st.sampled_from(["a", "b"]),
)
def test_what_is_written_in_a_batch_is_what_optuna_reads(
    url: str,
    storage: StudyStorage,
    study: optuna.Study,
    reports: dict[int, float],
    attrs: dict[str, Any],
    value: float,
    x: float,
    choice: str,
) -> None:
    study.enqueue_trial({"x": x, "choice": choice})
    waiting = [t for t in study.trials if t.state == TrialState.WAITING]
    for _ in waiting:
        trial = claim(storage, study)
        with storage.batch(trial._trial_id) as writes:
            trial.suggest_float("x", 0, 1)
            trial.suggest_categorical("choice", ["a", "b"])
            trial.suggest_int("n", 1, 64, log=True)
            for step, report in reports.items():
                trial.report(report, step)
            for key, attr in attrs.items():
                trial.set_user_attr(key, attr)
            writes.state, writes.values = TrialState.COMPLETE, [value]
    theirs = plain(url).trials
    assert [facts(t) for t in study.trials] == [facts(t) for t in theirs]
    last = theirs[-1]
    assert last.params["x"] == pytest.approx(x, rel=1e-12)
    assert last.params["choice"] == choice
    assert last.value == value
    assert last.user_attrs == attrs
    assert last.intermediate_values == pytest.approx(reports, rel=1e-12, abs=0, nan_ok=True)


def test_optunas_own_loop_works_on_it(url: str, storage: StudyStorage) -> None:
    study = load_study(storage, "s", optuna.samplers.TPESampler(seed=0, n_startup_trials=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", optuna.exceptions.ExperimentalWarning)
        study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=8)
    seen = plain(url)
    assert [t.state for t in seen.trials] == [TrialState.COMPLETE] * 8
    assert seen.best_value == study.best_value == min(t.params["x"] for t in seen.trials)


def test_a_parameter_may_not_change_its_kind(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    first = claim(storage, study)
    first.suggest_float("y", 0, 1)
    second = claim(storage, study)
    with pytest.raises(ValueError, match="distribution"):
        second.suggest_categorical("y", ["a"])
    # Another process has to ask the database.
    other = open_storage(url, worker="me")
    with pytest.raises(ValueError, match="distribution"):
        other.set_trial_param(second._trial_id, "y", 0, CategoricalDistribution(["a"]))


def test_writes_of_an_interrupted_block_are_not_stored(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    trial = claim(storage, study)
    with pytest.raises(KeyboardInterrupt), storage.batch(trial._trial_id):
        trial.report(1.0, 1)
        raise KeyboardInterrupt
    assert plain(url).trials[0].intermediate_values == {}


def test_only_the_owner_writes(url: str, storage: StudyStorage, study: optuna.Study) -> None:
    trial = claim(storage, study)
    thief = open_storage(url, worker="thief")
    with pytest.raises(TrialTakenError):
        thief.set_trial_user_attr(trial._trial_id, "a", 1)
    with pytest.raises(TrialTakenError):
        thief.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    assert not thief.beat(trial._trial_id)
    assert storage.beat(trial._trial_id)
    seen = plain(url).trials[0]
    assert (seen.state, seen.user_attrs) == (TrialState.RUNNING, {})


def test_whose_a_trial_is_shows_in_heartbeats_alone(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    trial_id = claim(storage, study)._trial_id
    assert plain(url).trials[0].system_attrs[WORKER_KEY] == "me"
    for known in (storage, pickle.loads(pickle.dumps(storage))):
        for trial in (known.get_trial(trial_id), known.get_all_trials(study._study_id)[0]):
            assert trial.system_attrs == {"fixed_params": {"x": 0.25}}
        assert known.get_trial_system_attrs(trial_id) == {"fixed_params": {"x": 0.25}}
        (heartbeat,) = known.heartbeats(study._study_id)
        assert heartbeat.worker == "me"
        assert known.beat(trial_id)


def test_a_trial_that_nobody_holds_takes_writes_but_not_of_who_lost_it(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    trial_id = claim(storage, study)._trial_id
    storage.release(study._study_id, "stopped", 1.0)
    with pytest.raises(TrialTakenError):
        storage.set_trial_user_attr(trial_id, "a", 1)
    open_storage(url, worker="other").set_trial_user_attr(trial_id, "a", 2)
    assert plain(url).trials[0].user_attrs["a"] == 2


def test_a_person_may_write_to_a_workers_trial(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    trial = claim(storage, study)
    person = open_storage(url, worker="")
    person.set_trial_user_attr(trial._trial_id, "a", 1)
    person.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    seen = plain(url).trials[0]
    assert (seen.state, seen.user_attrs) == (TrialState.FAIL, {"a": 1})
    with pytest.raises(TrialTakenError):
        trial.report(1.0, 1)
    with pytest.raises(TrialTakenError):
        person.set_trial_user_attr(trial._trial_id, "a", 2)


def test_a_trial_that_someone_else_ended_is_taken(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    trial = claim(storage, study)
    plain(url).tell(0, state=TrialState.FAIL)  # from the dashboard, say
    with pytest.raises(TrialTakenError):
        trial.report(1.0, 1)
    assert not storage.beat(trial._trial_id)
    assert storage.release(study._study_id, "stopped", 1.0) == []


# -- released and reclaimed ---------------------------------------------------------------------


def start_and_measure(storage: StudyStorage, study: optuna.Study) -> optuna.Trial:
    trial = claim(storage, study)
    trial.suggest_float("x", 0, 1)
    trial.suggest_int("n", 1, 8)
    trial.report(3.0, 1)
    trial.set_user_attr("instances", [1])
    trial.set_constraint("seconds over the limit", 1.0)
    return trial


def test_a_released_trial_keeps_its_parameters_and_nothing_else(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    trial = start_and_measure(storage, study)
    assert storage.release(study._study_id, "stopped", 1.0) == [0]
    seen = plain(url).trials[0]
    assert seen.state == TrialState.WAITING
    assert seen.params == trial.params
    assert seen.intermediate_values == {}
    assert seen.constraints == {}
    (attempt,) = seen.user_attrs.pop("attempts")
    assert seen.user_attrs == {}
    assert 0 < attempt.pop("seconds") < 60
    assert datetime.fromisoformat(attempt.pop("at")).utcoffset() == timedelta(0)
    assert attempt == {"worker": "me", "why": "stopped", "lost": False, "calls": 0}
    other = open_storage(url, worker="other")
    again = claim(other, load_study(other, "s", optuna.samplers.RandomSampler(seed=5)))
    assert again.number == 0
    assert again.suggest_float("x", 0, 1) == trial.params["x"]
    assert again.suggest_int("n", 1, 8) == trial.params["n"]
    with pytest.raises(TrialTakenError):
        trial.report(4.0, 2)
    finish(other, again)
    assert plain(url).trials[0].state == TrialState.COMPLETE


def age_heartbeats(url: str, seconds: int) -> None:
    """Make all heartbeats older than they are."""
    engine = sa.create_engine(parse_url(url))
    at = HEARTBEATS.c.heartbeat
    with engine.begin() as c:
        for trial_id, heartbeat in c.execute(sa.select(HEARTBEATS.c.trial_id, at)).all():
            moved = heartbeat - timedelta(seconds=seconds)
            c.execute(
                sa.update(HEARTBEATS)
                .where(HEARTBEATS.c.trial_id == trial_id)
                .values(heartbeat=moved)
            )
    engine.dispose()


def test_heartbeats_tell_whose_and_how_old(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    trial = claim(storage, study)
    age_heartbeats(url, 100)
    (beat,) = storage.heartbeats(study._study_id)
    assert (beat.trial_id, beat.number, beat.worker) == (trial._trial_id, 0, "me")
    assert 99 <= beat.age_s <= 105
    assert storage.beat(trial._trial_id)
    (beat,) = storage.heartbeats(study._study_id)
    assert beat.age_s <= 3


def test_a_lost_trial_is_queued_again_so_many_times_and_then_fails(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    rescuer = open_storage(url, worker="rescuer")
    for attempt in range(3):
        start_and_measure(storage, study)
        (beat,) = rescuer.heartbeats(study._study_id)
        became = rescuer.reclaim(beat, retries=2)
        assert became == (TrialState.WAITING if attempt < 2 else TrialState.FAIL)
    seen = plain(url).trials[0]
    assert seen.state == TrialState.FAIL
    assert seen.user_attrs["outcome"] == "lost worker"
    assert len(seen.user_attrs["attempts"]) == 3


def test_losses_before_the_latest_call_that_was_kept_do_not_count(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    study_id = study._study_id
    rescuer = open_storage(url, worker="rescuer")
    assert rescuer.keeps_calls()
    for made in (0, 0, 1, 1, 2, 2, 2):
        trial = start_and_measure(storage, study)
        rows = [CallRow("recipe", f"r/{i}", "b", study_id, 0, "{}", "") for i in range(made)]
        with storage.batch(trial._trial_id) as writes:
            writes.calls.extend(rows)
        (beat,) = rescuer.heartbeats(study_id)
        became = rescuer.reclaim(beat, retries=2)
    assert became == TrialState.FAIL
    seen = plain(url).trials[0]
    assert [a["calls"] for a in seen.user_attrs["attempts"]] == [0, 0, 1, 1, 2, 2, 2]
    assert seen.user_attrs["reason"] == "its worker was lost 3 times without another call"


def test_calls_are_kept_with_their_trials_writes_or_not_at_all(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    trial = claim(storage, study)
    assert storage.keeps_calls()
    row = CallRow("recipe", "r/0", "b", study._study_id, 0, "{}", "")
    other = open_storage(url, worker="other")
    (beat,) = other.heartbeats(study._study_id)
    assert other.reclaim(beat, retries=2) == TrialState.WAITING
    with pytest.raises(TrialTakenError), storage.batch(trial._trial_id) as writes:
        writes.calls.append(row)
        trial.report(1.0, 1)
    assert storage.calls_of("recipe") == []
    again = claim(storage, study)
    with lost_answer(storage), storage.batch(again._trial_id) as writes:
        writes.calls.append(row)
    assert storage.calls_of("recipe") == [row]


def test_many_at_once_make_one_table_of_calls(url: str, storage: StudyStorage) -> None:
    opened = [open_storage(url, worker=str(i)) for i in range(8)]
    told: list[bool] = []
    threads = [threading.Thread(target=lambda s=s: told.append(s.keeps_calls())) for s in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [True] * 8


def test_who_beats_is_not_lost(url: str, storage: StudyStorage, study: optuna.Study) -> None:
    trial = claim(storage, study)
    age_heartbeats(url, 100)
    rescuer = open_storage(url, worker="rescuer")
    (beat,) = rescuer.heartbeats(study._study_id)
    assert storage.beat(trial._trial_id)
    assert rescuer.reclaim(beat, retries=2) is None
    assert rescuer.reclaim(beat, retries=0) is None
    trial.report(1.0, 1)  # still its owner


# -- commits whose answer got lost -----------------------------------------------------------


class OperationalError(Exception):
    """Named as the driver's error for a connection that failed."""


@contextmanager
def lost_answer(storage: StudyStorage) -> Iterator[None]:
    """The next transaction is committed, but its client is told of a broken connection."""
    engine = storage.engine
    begin = engine.begin
    broken = sa.exc.OperationalError("x", {}, OperationalError("cut"))
    left = [1]

    @contextmanager
    def failing() -> Iterator[sa.Connection]:
        with begin() as connection:
            yield connection
        if left:
            left.pop()
            raise broken

    engine.begin = failing  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.begin = begin  # type: ignore[method-assign]
    assert not left, "the block used no transaction"


def test_every_operation_may_run_again_on_top_of_itself(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    with lost_answer(storage):
        # Its own first attempt is what it finds there.
        assert not storage.create_study("t", {}, [{"x": 1.0}])
    assert [t.state for t in load_study(storage, "t").trials] == [TrialState.WAITING]
    with lost_answer(storage):
        trial = claim(storage, study)
    with lost_answer(storage), storage.batch(trial._trial_id):
        trial.suggest_float("x", 0, 1)
        trial.report(1.0, 1)
    assert len(study.get_trials(states=(TrialState.RUNNING,))) == 1
    with lost_answer(storage):
        finish(storage, trial, 0.5)
    second = claim(storage, study)
    with lost_answer(storage):
        storage.release(study._study_id, "stopped", 5.0)
    first, waiting = plain(url).trials
    assert (first.state, first.value, first.params) == (TrialState.COMPLETE, 0.5, {"x": 0.25})
    assert (waiting.number, waiting.state) == (second.number, TrialState.WAITING)
    assert len(waiting.user_attrs["attempts"]) == 1


@contextmanager
def away_once(storage: StudyStorage) -> Iterator[None]:
    """The database does not answer the block's first statement."""
    left = [sa.exc.OperationalError("x", {}, OperationalError("cut"))]

    def fail(*_: object) -> None:
        if left:
            raise left.pop()

    sa.event.listen(storage.engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        sa.event.remove(storage.engine, "before_cursor_execute", fail)
    assert not left, "the block used no statement"


# Once in every few seconds anyway; on top of one transaction; of this process alone.
NOT_TRIED_AGAIN = {"beat", "heartbeats", "reclaim", "transaction", "name", "remove_session"}
# Made of the others.
DERIVED = {"check_trial_is_updatable", "get_best_trial", "get_n_trials", "get_trial_number_from_id"}
DERIVED |= {"get_trial_id_from_study_id_trial_number", "get_trial_params", "get_trial_user_attrs"}
DERIVED |= {"get_trial_param", "batch"}
DERIVED |= {"forget_trials"}  # of no database


def test_every_operation_is_tried_again(
    storage: StudyStorage, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.storage.retry._pause", lambda seconds: None)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # Optuna's own, for new trials
    study_id, trial_id = study._study_id, claim(storage, study)._trial_id
    minimize, distribution = [optuna.study.StudyDirection.MINIMIZE], FloatDistribution(0, 1)
    arguments: dict[str, tuple[Any, ...]] = {
        "read": (lambda c: c.exec_driver_sql("SELECT 1").scalar(),),
        "transact": (lambda c: c.exec_driver_sql("SELECT 1").scalar(),),
        "create_study": ("t", {}, []),
        "join": (study_id,),
        "identify": (study_id,),
        "claim": (study_id, None),
        "queue_once": (study_id, {"x": 0.25}),
        "queue_starts": (study_id, [{"x": 0.75}]),
        "keeps_calls": (),
        "calls_of": ("recipe",),
        "calls_of_study": (study_id,),
        "keep_calls": ([CallRow("recipe", "a/0", "basis", study_id, None, "{}", "")],),
        "count_calls": (study_id,),
        "trials_for_sampling": (study_id,),
        "get_all_trials": (study_id,),
        "get_trial": (trial_id,),
        "get_trial_system_attrs": (trial_id,),
        "create_new_trial": (study_id,),
        "set_trial_param": (trial_id, "x", 0.5, distribution),
        "set_trial_user_attr": (trial_id, "a", 1),
        "set_trial_system_attr": (trial_id, "a", 1),
        "set_trial_intermediate_value": (trial_id, 1, 1.0),
        "set_trial_state_values": (trial_id, TrialState.COMPLETE, [1.0]),
        "release": (study_id, "stopped", 5.0, {"why": "stopped"}),
        "write_entry": (study_id, {"why": "stopped"}),
        "create_new_study": (minimize, "u"),
        "set_study_user_attr": (study_id, "a", 1),
        "set_study_system_attr": (study_id, "a", 1),
        "get_study_id_from_name": ("s",),
        "get_study_name_from_id": (study_id,),
        "get_study_directions": (study_id,),
        "get_study_user_attrs": (study_id,),
        "get_study_system_attrs": (study_id,),
        "get_all_studies": (),
        "delete_study": (study_id,),
    }
    public = {name for name in dir(storage) if callable(getattr(StudyStorage, name, None))}
    public = {name for name in public if name[0] != "_"} - NOT_TRIED_AGAIN - DERIVED
    assert arguments.keys() == public
    for name, values in arguments.items():
        with away_once(storage):
            getattr(storage, name)(*values)


def test_a_trouble_that_lasts_ends_in_one_line(url: str) -> None:
    storage = open_storage(url, worker="me", retry_s=0.2)

    @contextmanager
    def away() -> Iterator[sa.Connection]:
        raise sa.exc.OperationalError("x", {}, OperationalError("no route to host"))
        yield

    storage.engine.begin = away  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"no route to host; .*gave up after") as error:
        storage.create_study("s", {}, [])
    assert "a-password" not in str(error.value)
