"""What every storage promises to workers; each test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from hpo.errors import UserError
from hpo.storage.open import load_study, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.storage.tables import HEARTBEATS, STATE_INDEX
from hpo.storage.transactions import NoTrial, TrialTakenError
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


def test_fifty_processes_open_an_empty_database_in_the_same_instant(url: str) -> None:
    script = """
import os, sys, time
import alembic.command, alembic.ddl, psycopg  # or each of them would, at its own speed
from hpo.storage.open import open_storage, load_study
start = time.time() + 0.5
children = []
for i in range(50):
    if (pid := os.fork()) == 0:
        code = 1
        try:
            time.sleep(max(0.0, start - time.time()))
            storage = open_storage(sys.argv[1])
            storage.create_study("s", {"manifest": {"by": i}}, [{"x": 1.0}])
            ordinal = storage.join_study(load_study(storage, "s")._study_id)
            os.write(1, f"{ordinal}\\n".encode())
            code = 0
        finally:
            os._exit(code)
    children.append(pid)
sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in children))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, url],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPO)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Everybody joined, and nobody is told the same place as another.
    assert sorted(map(int, done.stdout.split())) == list(range(50))
    assert len(plain(url).trials) == 1  # the starting recipe, queued once


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
        storage.database.create_new_trial(study._study_id, trial)
    said: list[tuple[str, Any]] = []
    engine = storage.database.engine
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
    """All of a trial as text, whatever the order of its attributes; NaN equals NaN there."""
    facts = dict(vars(trial), params=trial.params, distributions=trial.distributions)
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
def test_what_is_written_together_is_what_optuna_reads(
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
        with storage.together(trial._trial_id) as writes:
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


def test_a_parameter_may_not_change_its_range(storage: StudyStorage, study: optuna.Study) -> None:
    first = claim(storage, study)
    first.suggest_float("y", 0, 1)
    finish(storage, first)
    with pytest.raises(ValueError, match="distribution"):
        claim(storage, study).suggest_categorical("y", ["a"])


def test_writes_of_an_interrupted_block_are_not_stored(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    trial = claim(storage, study)
    with pytest.raises(KeyboardInterrupt), storage.together(trial._trial_id):
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


def test_a_trial_that_someone_else_ended_is_taken(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    trial = claim(storage, study)
    plain(url).tell(0, state=TrialState.FAIL)  # from the dashboard, say
    with pytest.raises(TrialTakenError):
        trial.report(1.0, 1)
    assert not storage.beat(trial._trial_id)
    assert storage.hand_back(study._study_id, "stopped", 1.0) == []


# -- lost and found --------------------------------------------------------------------------


def start_and_measure(storage: StudyStorage, study: optuna.Study) -> optuna.Trial:
    trial = claim(storage, study)
    trial.suggest_float("x", 0, 1)
    trial.suggest_int("n", 1, 8)
    trial.report(3.0, 1)
    trial.set_user_attr("instances", [1])
    trial.set_constraint("seconds over the limit", 1.0)
    return trial


def test_a_trial_handed_back_keeps_its_recipe_and_nothing_else(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    trial = start_and_measure(storage, study)
    assert storage.hand_back(study._study_id, "stopped", 1.0) == [0]
    seen = plain(url).trials[0]
    assert seen.state == TrialState.WAITING
    assert seen.params == trial.params
    assert seen.intermediate_values == {}
    assert seen.constraints == {}
    assert seen.user_attrs == {"attempts": [{"worker": "me", "why": "stopped", "lost": False}]}
    other = open_storage(url, worker="other")
    again = claim(other, load_study(other, "s", optuna.samplers.RandomSampler(seed=5)))
    assert again.number == 0
    assert again.suggest_float("x", 0, 1) == trial.params["x"]
    assert again.suggest_int("n", 1, 8) == trial.params["n"]
    with pytest.raises(TrialTakenError):
        trial.report(4.0, 2)
    finish(other, again)
    assert plain(url).trials[0].state == TrialState.COMPLETE


def silence(url: str, seconds: int) -> None:
    """Make all beats older than they are."""
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


def test_beats_tell_whose_and_how_old(url: str, storage: StudyStorage, study: optuna.Study) -> None:
    trial = claim(storage, study)
    silence(url, 100)
    (beat,) = storage.beats(study._study_id)
    assert (beat.trial_id, beat.number, beat.worker) == (trial._trial_id, 0, "me")
    assert 99 <= beat.age_s <= 105
    assert storage.beat(trial._trial_id)
    (beat,) = storage.beats(study._study_id)
    assert beat.age_s <= 3


def test_a_lost_trial_is_queued_again_so_many_times_and_then_fails(
    url: str, storage: StudyStorage, study: optuna.Study
) -> None:
    rescuer = open_storage(url, worker="rescuer")
    for attempt in range(3):
        start_and_measure(storage, study)
        (beat,) = rescuer.beats(study._study_id)
        became = rescuer.take_from_lost(beat, retries=2)
        assert became == (TrialState.WAITING if attempt < 2 else TrialState.FAIL)
    seen = plain(url).trials[0]
    assert seen.state == TrialState.FAIL
    assert seen.user_attrs["outcome"] == "lost worker"
    assert len(seen.user_attrs["attempts"]) == 3


def test_who_shows_life_is_not_lost(url: str, storage: StudyStorage, study: optuna.Study) -> None:
    trial = claim(storage, study)
    silence(url, 100)
    rescuer = open_storage(url, worker="rescuer")
    (beat,) = rescuer.beats(study._study_id)
    assert storage.beat(trial._trial_id)
    assert rescuer.take_from_lost(beat, retries=2) is None
    assert rescuer.take_from_lost(beat, retries=0) is None
    trial.report(1.0, 1)  # still its owner


# -- commits whose answer got lost -----------------------------------------------------------


@contextmanager
def lost_answer(storage: StudyStorage) -> Iterator[None]:
    """The next transaction is committed, but its client is told of a broken connection."""
    engine = storage.database.engine
    begin = engine.begin
    broken = sa.exc.OperationalError("x", {}, type("OperationalError", (Exception,), {})("cut"))
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
    with lost_answer(storage), storage.together(trial._trial_id):
        trial.suggest_float("x", 0, 1)
        trial.report(1.0, 1)
    assert len(study.get_trials(states=(TrialState.RUNNING,))) == 1
    with lost_answer(storage):
        finish(storage, trial, 0.5)
    second = claim(storage, study)
    with lost_answer(storage):
        storage.hand_back(study._study_id, "stopped", 5.0)
    first, waiting = plain(url).trials
    assert (first.state, first.value, first.params) == (TrialState.COMPLETE, 0.5, {"x": 0.25})
    assert (waiting.number, waiting.state) == (second.number, TrialState.WAITING)
    assert len(waiting.user_attrs["attempts"]) == 1


def test_a_short_trouble_is_ridden_out_and_said_aloud(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(url, worker="me", patience_s=30.0)
    begin = storage.database.engine.begin
    back_at = time.monotonic() + 2.5

    @contextmanager
    def away() -> Iterator[sa.Connection]:
        if time.monotonic() < back_at:
            cause = type("OperationalError", (Exception,), {})("server closed the connection")
            raise sa.exc.OperationalError("x", {}, cause)
        with begin() as connection:
            yield connection

    storage.database.engine.begin = away  # type: ignore[method-assign]
    assert storage.create_study("s", {}, [])
    assert "server closed the connection; trying again in" in caplog.text
    assert "answers again after" in caplog.text


def test_a_trouble_that_lasts_ends_in_one_line(url: str) -> None:
    storage = open_storage(url, worker="me", patience_s=0.2)

    @contextmanager
    def away() -> Iterator[sa.Connection]:
        cause = type("OperationalError", (Exception,), {})("no route to host")
        raise sa.exc.OperationalError("x", {}, cause)
        yield

    storage.database.engine.begin = away  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"no route to host; .*gave up after") as error:
        storage.create_study("s", {}, [])
    assert "a-password" not in str(error.value)
