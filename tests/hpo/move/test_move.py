"""A study that is moved is the same study, wherever it goes, or is not there at all."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import get_note, save_note

from benchmarks.postgres import PASSWORD, Postgres
from benchmarks.storage_fill import fill, make_trials
from hpo.errors import UserError
from hpo.move import rows, run
from hpo.move.__main__ import main
from hpo.storage.open import load_study, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.storage.tables import HEARTBEATS, STUDIES, STUDY_SYSTEM_ATTRS, TRIALS, utc_now
from hpo.storage.url import parse_url
from hpo.study.config import load_study_file
from hpo.trial.calls import CallKey, row_of
from hpo.trial.record import Call, FailedCall
from tests.waiting import wait_for

if TYPE_CHECKING:
    from tests.conftest import Forked, Nursery, Process

REPO = Path(__file__).parents[3]
KINDS = ["sqlite", "postgresql"]
NewDatabase = Callable[[str], str]
Start = Callable[..., "Forked"]


@pytest.fixture
def start(cheap_nursery: Nursery, tmp_path: Path, ended: list[Process]) -> Start:
    """Starts Python, and ends it in the end if it has not."""

    def start(*command: str) -> Forked:
        out, err = (tmp_path / f"process{len(ended)}.{kind}" for kind in ("out", "err"))
        process = cheap_nursery.start(command, REPO, os.environ, out, err)
        ended.append(process)
        return process

    return start


# -- studies of all sorts --------------------------------------------------------------------

_NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
# In columns: SQLite keeps a whole REAL as an integer, and so no sign of zero (docs/machines.md).
_STORED = _NUMBERS.map(lambda x: x + 0.0)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
_KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
_ATTRS = st.dictionaries(_KEYS, _JSON, max_size=4)
_PARAMETERS: list[tuple[BaseDistribution, st.SearchStrategy[Any]]] = [
    (FloatDistribution(-1e9, 1e9), st.floats(-1e9, 1e9).map(lambda x: x + 0.0)),
    (FloatDistribution(1e-9, 1.0, log=True), st.floats(1e-9, 1.0)),
    (IntDistribution(-5, 2**31, step=1), st.integers(-5, 2**31)),
    (IntDistribution(1, 512, log=True), st.integers(1, 512)),
    (CategoricalDistribution([None, True, 2, 0.5, "ᚠ"]), st.sampled_from([None, True, 2, 0.5])),
]


@st.composite
def _trials(draw: st.DrawFn) -> FrozenTrial:
    state = draw(st.sampled_from(list(TrialState)))
    chosen = draw(st.lists(st.sampled_from(range(len(_PARAMETERS))), unique=True))
    artifact = {"artifact_id": "0f0e", "filename": "ᚠ.png", "mimetype": "image/png"}
    times = st.datetimes(min_value=utc_now() - timedelta(days=9999), max_value=utc_now())
    values = _STORED.filter(lambda x: not math.isnan(x))
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=state,
        value=draw(values) if state == TrialState.COMPLETE else draw(st.none() | values),
        datetime_start=None if state == TrialState.WAITING else draw(times),
        datetime_complete=draw(times) if state.is_finished() else None,
        params={f"p{i}": draw(_PARAMETERS[i][1]) for i in chosen},
        distributions={f"p{i}": _PARAMETERS[i][0] for i in chosen},
        user_attrs=draw(_ATTRS),
        system_attrs={
            **draw(_ATTRS),
            "constraints": draw(st.lists(_NUMBERS, max_size=2)),
            "artifacts:0f0e": json.dumps(artifact),
        },
        intermediate_values=draw(st.dictionaries(st.integers(0, 2**31 - 1), _STORED, max_size=4)),
    )


def make_study(
    where: str | StudyStorage, trials: list[FrozenTrial], attrs: dict[str, Any], name: str = "s"
) -> StudyStorage:
    """A study of these trials, those that run and every other one with a sign of life."""
    storage = open_storage(where, worker="me") if isinstance(where, str) else where
    storage.create_study(name, {"manifest": {"data": "x"}, **attrs}, [])
    study_id = storage.get_study_id_from_name(name)
    storage.join(study_id)
    for i, trial in enumerate(trials):
        trial_id = storage.rdb.create_new_trial(study_id, trial)  # which nobody holds
        if i % 2 or trial.state == TrialState.RUNNING:
            with storage.engine.begin() as c:
                c.execute(sa.insert(HEARTBEATS).values(trial_id=trial_id, heartbeat=utc_now()))
    return storage


def plain(url: str, name: str = "s") -> optuna.Study:
    """The study as Optuna alone sees it."""
    engine_url = parse_url(url).render_as_string(hide_password=False)
    return optuna.load_study(study_name=name, storage=RDBStorage(engine_url))


def facts(study: optuna.Study) -> list[str]:
    """All that is said of a study but its ids, as text: NaN equals NaN there.

    Of a study from Optuna's own storage without the order of attributes, which it reads in none.
    """
    told: list[dict[str, Any]] = [dict(study.user_attrs)]
    told.append(study._storage.get_study_system_attrs(study._study_id))
    for trial in study.get_trials(deepcopy=False):
        told.append({k: v for k, v in vars(trial).items() if k != "_trial_id"})
    if isinstance(study._storage, StudyStorage):
        return [repr(fact) for fact in (study.directions, *told)]
    return [repr(fact) for fact in (study.directions, *map(_sorted, told))]


def _sorted(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return sorted(((k, _sorted(v)) for k, v in value.items()), key=lambda item: repr(item[0]))


def signs_of_life(url: str, name: str) -> list[Any]:
    query = (
        sa.select(TRIALS.c.number, HEARTBEATS.c.heartbeat)
        .join(HEARTBEATS, HEARTBEATS.c.trial_id == TRIALS.c.trial_id)
        .join(STUDIES, STUDIES.c.study_id == TRIALS.c.study_id)
        .where(STUDIES.c.study_name == name)
        .order_by(TRIALS.c.number)
    )
    engine = sa.create_engine(parse_url(url))
    with engine.connect() as c:
        return [tuple(row) for row in c.execute(query)]


def move(source: str, target: str, *options: str) -> None:
    assert main(["--study", "s", "--from", source, "--to", target, *options]) == 0


def names_in(url: str) -> list[str]:
    return [s.study_name for s in open_storage(url).get_all_studies()]


# -- exactness -------------------------------------------------------------------------------


@pytest.mark.parametrize(("here", "there"), [KINDS, KINDS[::-1]])
def test_there_and_back_gives_the_same_study(
    new_database: NewDatabase, here: str, there: str
) -> None:
    urls = [new_database(here), new_database(there), new_database(here)]
    # Ids are others there: another study came first.
    make_study(urls[1], [optuna.trial.create_trial(value=1.0)] * 3, {}, "first")
    opened = [open_storage(url) for url in urls]  # which takes time
    optunas = [RDBStorage(parse_url(u).render_as_string(hide_password=False)) for u in urls]
    numbers = itertools.count()

    @settings(
        max_examples=10,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a database is slow to shrink on
    )
    @given(trials=st.lists(_trials(), max_size=6), attrs=_ATTRS)
    def check(trials: list[FrozenTrial], attrs: dict[str, Any]) -> None:
        name = f"s{next(numbers)}"
        make_study(opened[0], trials, attrs, name)
        for source, target in itertools.pairwise(urls):
            asked = ["--study", name, "--from", source, "--to", target]
            assert main([*asked, "--while-running"]) == 0
        read = [facts(optuna.load_study(study_name=name, storage=o)) for o in optunas]
        assert read[0] == read[1] == read[2]
        in_order = [facts(load_study(storage, name)) for storage in opened]
        assert in_order[0] == in_order[1] == in_order[2]
        beats = [signs_of_life(url, name) for url in urls]
        assert len(beats[0]) >= len(trials) // 2
        assert beats[0] == beats[1] == beats[2]

    check()


@pytest.mark.parametrize(("here", "there"), [KINDS, KINDS[::-1]])
def test_a_negative_zero_arrives_as_a_zero(
    new_database: NewDatabase, here: str, there: str
) -> None:
    source, target = new_database(here), new_database(there)
    trial = optuna.trial.create_trial(
        value=-0.0,
        params={"x": -0.0},
        distributions={"x": FloatDistribution(-1.0, 1.0)},
        intermediate_values={1: -0.0},
        user_attrs={"zero": -0.0},
    )
    make_study(source, [trial], {})
    move(source, target)
    (found,) = plain(target).trials
    assert (found.value, found.params, found.intermediate_values) == (0.0, {"x": 0.0}, {1: 0.0})
    assert math.copysign(1.0, found.user_attrs["zero"]) == -1.0


@pytest.mark.parametrize(("here", "there"), [KINDS, KINDS[::-1]])
def test_calls_go_with_their_study_and_those_that_are_missing_are_added(
    new_database: NewDatabase, here: str, there: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = new_database(here), new_database(there)
    make_study(target, [], {}, "first")  # ids are others there
    storage = make_study(source, [optuna.trial.create_trial(value=1.0)], {})
    make_study(storage, [], {}, "t")
    mine, others = (storage.get_study_id_from_name(name) for name in ("s", "t"))
    labels = ["ᚠ/0", "a/0", "B/1", "a/0 bilinear", "z_/0"]  # that collations sort otherwise
    key = CallKey("0f0e", "", "b")
    made = [replace(key, instance=label) for label in labels]
    loss = Call(instance="", loss=0.1, per_t_bin=(0.5, None))
    failed = FailedCall(loss=None, seconds=1.0, reason="not finite")
    rows_of_s = [row_of(k, mine, 0, loss) for k in made[:-1]] + [
        row_of(made[-1], mine, None, failed)
    ]
    storage.keep_calls([*rows_of_s[:2], row_of(made[4], others, 0, loss)])
    move(source, target)
    assert "1 trials copied" in (said := capsys.readouterr().out)
    assert "identical; 2 calls, too" in said
    storage.keep_calls(rows_of_s)
    move(source, target)
    assert "has it already, identical (1 trials); 3 calls added" in capsys.readouterr().out
    moved = open_storage(target)
    copy_id = moved.get_study_id_from_name("s")
    assert copy_id != mine
    expected = [replace(row, study_id=copy_id) for row in rows_of_s]
    assert sorted(moved.calls_of_study(copy_id), key=repr) == sorted(expected, key=repr)
    assert moved.count_calls(moved.get_study_id_from_name("first")) == 0
    move(source, target)
    assert capsys.readouterr().out.endswith("identical (1 trials)\n")
    changed = replace(rows_of_s[1], study_id=copy_id, value_json="{}")
    moved.keep_calls([changed])
    with pytest.raises(UserError, match=r"another study s \(its call of recipe 0f0e on a/0\)"):
        move(source, target)
    moved.delete_study(copy_id)
    assert moved.calls_of_study(copy_id) == []


def test_where_calls_can_not_be_kept_they_are_left_behind(
    postgres: Postgres, new_database: NewDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    source = new_database("sqlite")
    storage = make_study(source, [optuna.trial.create_trial(value=1.0)], {})
    study_id = storage.get_study_id_from_name("s")
    storage.keep_calls([row_of(CallKey("r", "a/0", "b"), study_id, 0, Call(instance="", loss=1.0))])
    target = postgres.create("no_calls")
    open_storage(target)
    postgres.sql("CREATE ROLE writer LOGIN PASSWORD 'writer'")
    postgres.sql(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO writer", "no_calls"
    )
    postgres.sql("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO writer", "no_calls")
    move(source, f"postgresql://writer:writer@127.0.0.1:{postgres.port}/no_calls")
    assert capsys.readouterr().out.endswith("identical; 1 call left behind\n")


def test_every_table_of_optuna_is_copied_or_known_to_be_none_of_a_study() -> None:
    tables = {table.name for table in models.BaseModel.metadata.sorted_tables}
    copied = {t.name for t in (*rows._STUDY_TABLES, *rows._TRIAL_TABLES)}
    assert tables - copied == {"studies", "trials", "version_info"}


def test_what_other_tools_keep_of_trials_by_their_ids_follows_the_trials(
    new_database: NewDatabase,
) -> None:
    source, target = new_database("sqlite"), new_database("postgresql")
    storage = make_study(source, [optuna.trial.create_trial(value=v) for v in (1.0, 2.0)], {})
    study = load_study(storage, "s")
    _, noted = study.trials
    save_note(study, "of the study")
    save_note(optuna.Trial(study, noted._trial_id), "of the second trial " * 200)
    keys = [f"dashboard:artifacts:{noted._trial_id}:a1", f"preference:skip_trial:{noted._trial_id}"]
    for key in [*keys, "preference:skip_trial:99"]:  # the last is of no trial
        storage.set_study_system_attr(study._study_id, key, True)
    storage.set_study_system_attr(study._study_id, "NSGAIISampler:parent:1", [noted._trial_id])
    make_study(target, [optuna.trial.create_trial(value=1.0)] * 7, {}, "first")
    move(source, target)
    there = plain(target)
    moved = there.trials[1]._trial_id
    assert moved != noted._trial_id
    assert get_note(there) == "of the study"
    assert get_note(optuna.Trial(there, moved)) == "of the second trial " * 200
    attrs = there._storage.get_study_system_attrs(there._study_id)
    assert attrs[f"dashboard:artifacts:{moved}:a1"]
    assert {k for k in attrs if "skip" in k} == {
        f"preference:skip_trial:{moved}",
        "preference:skip_trial:99",
    }
    assert attrs["NSGAIISampler:parent:1"] == [moved]
    # It is the same study, though its attributes have other names.
    move(source, target)


def test_a_study_that_was_moved_goes_on_where_it_was(new_database: NewDatabase) -> None:
    source, target = new_database("sqlite"), new_database("postgresql")
    storage = open_storage(source, worker="me")
    assert storage.create_study("s", {}, [{"x": 0.25}, {"x": 0.5}])
    assert storage.join(1) == 0
    move(source, target)
    there = open_storage(target, worker="other")
    study = load_study(there, "s")
    assert there.join(study._study_id) == 1  # no seed comes twice
    for x in (0.25, 0.5):
        trial_id = there.claim(study._study_id, None)
        assert isinstance(trial_id, int)
        assert optuna.Trial(study, trial_id).suggest_float("x", 0, 1) == x
        there.set_trial_state_values(trial_id, TrialState.COMPLETE, [x])


@settings(deadline=None, max_examples=20)
@given(
    files=st.dictionaries(st.uuids().map(str), st.binary(max_size=100), max_size=5),
    missing=st.booleans(),
)
def test_files_go_there_and_back(files: dict[str, bytes], missing: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        here, there, back = (Path(directory) / name for name in ("here", "there", "back"))
        here.mkdir()
        for name, content in files.items():
            (here / name).write_bytes(content)
        ids = [*files, *(["not-there"] if missing else [])]
        for places in [(here, there), (there, back), (there, back)]:
            said = run._move_files(ids, run._stores([str(place) for place in places]))
            assert f"; {len(files)} files copied" in said or not ids
            assert ("1 are not there" in said) == missing
            there.mkdir(exist_ok=True)
        assert {path.name: path.read_bytes() for path in back.glob("*")} == files


def test_files_of_trials_are_copied_with_their_study_where_that_is_asked_for(
    new_database: NewDatabase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = new_database("sqlite"), new_database("postgresql")
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    linked = [
        optuna.trial.create_trial(value=1.0, system_attrs={f"artifacts:{name}": "{}"})
        for name in ("one", "other")
    ]
    storage = make_study(source, linked[:1], {})
    make_study(storage, linked[1:], {}, "t")
    storage.set_study_system_attr(1, "artifacts:plot", "{}")
    (tmp_path / "here").mkdir()
    for name in ("one", "other", "plot"):
        (tmp_path / "here" / name).write_text(name)
    move(source, target)
    assert "; 2 files stay where they are (--artifacts FROM TO" in capsys.readouterr().out
    move(source, target, "--artifacts", here, there)
    assert "identical (1 trials); 2 files copied" in capsys.readouterr().out
    found = {path.name: path.read_text() for path in (tmp_path / "there").iterdir()}
    assert found == {"one": "one", "plot": "plot"}  # and none of the other study's
    for places, words in [
        ((str(tmp_path / "nowhere"), there), "nowhere is no directory; write one that exists"),
        ((here, "none"), "--artifacts names no place; write two directories"),
        ((here, str(tmp_path / "there" / "one")), "was not copied"),
    ]:
        with pytest.raises(UserError) as error:
            move(source, new_database("sqlite"), "--artifacts", *places)
        assert words in str(error.value)
        assert "\n" not in str(error.value)


# -- once and again --------------------------------------------------------------------------


@pytest.fixture
def source(new_database: NewDatabase, request: pytest.FixtureRequest) -> str:
    """A database with two small studies."""
    url = new_database(getattr(request, "param", "sqlite"))
    trials = [optuna.trial.create_trial(value=float(v), user_attrs={"v": v}) for v in range(3)]
    make_study(url, trials, {})
    make_study(url, trials[:1], {}, "t")
    return url


def test_a_second_move_says_that_it_is_there_and_changes_nothing(
    source: str, new_database: NewDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    target = new_database("postgresql")
    move(source, target)
    assert "s: 3 trials copied to postgresql" in capsys.readouterr().out
    move(source, target)
    said = capsys.readouterr().out
    assert "has it already, identical (3 trials)" in said
    assert PASSWORD not in said
    assert names_in(target) == ["s"]
    assert main(["--all", "--from", source, "--to", target]) == 0
    assert "t: 1 trials copied" in capsys.readouterr().out
    assert names_in(target) == ["s", "t"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DELETE FROM trial_user_attributes WHERE key = 'v'", "trial 0: its user attributes"),
        ("UPDATE trials SET number = 7 WHERE number = 2", "trial 2: its number, state or times"),
        ("UPDATE trial_values SET value = 1.5 WHERE value = 1", "trial 1: its values"),
        ("DELETE FROM study_user_attributes", "its user attributes"),
        ("UPDATE study_directions SET direction = 'MAXIMIZE'", "its directions"),
        ("INSERT INTO trials (study_id, number, state) VALUES (1, 3, 'FAIL')", "3 trials and 4"),
    ],
)
def test_another_study_of_that_name_is_left_alone(
    source: str, new_database: NewDatabase, change: str, words: str
) -> None:
    target = new_database("sqlite")
    move(source, target)
    with closing(sqlite3.connect(target.removeprefix("sqlite:///"))) as c:
        c.execute(change)
        c.commit()
    before = facts(plain(target))
    with pytest.raises(UserError, match="has another study s") as error:
        move(source, target)
    assert f"({words})" in str(error.value)
    assert facts(plain(target)) == before


@pytest.mark.parametrize("source", KINDS, indirect=True)
def test_a_source_that_changes_meanwhile_is_not_copied_by_halves(
    source: str, new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real = new_database("postgresql"), run.insert_study

    def insert_study(*arguments: Any) -> object:
        copied = real(*arguments)
        other = open_storage(source)
        other.set_study_user_attr(other.get_study_id_from_name("s"), "new", 1)
        return copied

    monkeypatch.setattr(run, "insert_study", insert_study)
    with pytest.raises(UserError, match=r"changed while it was copied \(its user attributes\)"):
        move(source, target)
    assert names_in(target) == []
    monkeypatch.undo()
    move(source, target)
    assert plain(target).user_attrs["new"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_two_moves_at_once_make_one_study(
    source: str, new_database: NewDatabase, kind: str, start: Start
) -> None:
    target = new_database(kind)
    command = ["-m", "hpo.move", "--study", "s", "--from", source, "--to", target]
    both = [start(*command) for _ in range(2)]
    said = "".join(process.communicate(240)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said.count("copied") == 1
    assert said.count("has it already") == 1
    assert len(plain(target).trials) == 3


# -- workers ---------------------------------------------------------------------------------


@pytest.fixture
def worker(start: Start) -> Start:
    """Starts a worker of four trials."""
    script = str(Path(__file__).parents[1] / "cheap_worker.py")

    def worker(url: str, *options: str) -> Forked:
        return start(script, url, "4", *options, "heartbeat_s=0.4", "grace_s=60")

    return worker


def runs_a_trial(worker: Forked) -> bool:
    return "running 0" in worker.err.read_text()


def study_file(tmp_path: Path) -> str:
    """The file of the study of `worker`."""
    text = (REPO / "studies" / "quickstart.toml").read_text()
    path = tmp_path / "cheap.toml"
    text = text.replace('name = "quickstart"', 'name = "cheap"')
    path.write_text(f"{text}\n[recovery]\nheartbeat_s = 0.4\ngrace_s = 60\n")
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_that_is_worked_on_stays_and_a_lost_workers_trial_goes_on_elsewhere(
    new_database: NewDatabase, kind: str, tmp_path: Path, worker: Start
) -> None:
    source, target = new_database(kind), new_database("postgresql")
    open_storage(source)
    asked = ["--study", study_file(tmp_path), "--from", source, "--to", target]
    busy = worker(source, "step_s=60")
    try:
        wait_for(lambda: runs_a_trial(busy))
        with pytest.raises(UserError, match=r"study cheap is being worked on: .* runs trial 0"):
            main(asked)
        with pytest.raises(UserError, match="has no studies"):
            main(["--all", "--from", target, "--to", source])  # nothing was made there
    finally:
        busy.kill()
        busy.wait()
    # As if it had been silent for longer than the study's grace.
    with open_storage(source).engine.begin() as c:
        c.execute(sa.update(HEARTBEATS).values(heartbeat=utc_now() - timedelta(seconds=61)))
    assert main(asked) == 0
    assert worker(target).wait(240) == 0
    trials = plain(target, "cheap").trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 4
    assert trials[0].user_attrs["attempts"][0]["why"] == "lost worker"
    (left,) = plain(source, "cheap").trials  # as it was
    assert left.state == TrialState.RUNNING


def test_running_trials_of_other_programs_are_refused_unless_asked_for(
    source: str, new_database: NewDatabase
) -> None:
    target = new_database("postgresql")
    # As Optuna's own loop does, which gives no signs of life by default.
    plain(source).ask()
    with pytest.raises(UserError, match="without signs of life, by other programs: 1"):
        move(source, target)
    move(source, target, "--while-running")
    assert [t.state.name for t in plain(target).trials] == ["COMPLETE"] * 3 + ["RUNNING"]


def test_drained_workers_leave_a_study_that_can_move(
    new_database: NewDatabase, worker: Start
) -> None:
    source, target = new_database("sqlite"), new_database("postgresql")
    open_storage(source)
    busy = worker(source, "step_s=60")
    wait_for(lambda: runs_a_trial(busy))
    busy.send_signal(signal.SIGTERM)
    assert busy.wait(60) == 0
    assert main(["--study", "cheap", "--from", source, "--to", target]) == 0
    (waiting,) = plain(target, "cheap").trials
    assert waiting.state == TrialState.WAITING


# -- killed ----------------------------------------------------------------------------------


# The command with smaller parts; after the first one it may hang.
IN_PARTS = """
import sys, time
from hpo.errors import run_command
from hpo.move import rows, run
from hpo.move.__main__ import main
rows._BATCH = 50
insert = run.insert_study

def insert_a_part(name, of, into, advance):
    def hang(n):
        print("a part is there", flush=True)
        time.sleep(600)
    return insert(name, of, into, hang)

if sys.argv.pop(1) == "hang":
    run.insert_study = insert_a_part
run_command(main)
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with a study of 120 trials, more than two parts."""
    url = f"sqlite:///{tmp_path_factory.mktemp('parts')}/parts.db"
    fill(url, make_trials(load_study_file("runes-default"), 120))
    return url


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("sqlite", signal.SIGKILL),
        ("postgresql", signal.SIGKILL),
        ("postgresql", signal.SIGINT),
    ],
)
def test_a_move_that_is_killed_leaves_nothing_and_may_run_again(
    parts: str, new_database: NewDatabase, kind: str, number: signal.Signals, start: Start
) -> None:
    target = new_database(kind)
    urls = ("--all", "--from", parts, "--to", target)
    process = start("-c", IN_PARTS, "hang", *urls)
    wait_for(lambda: "a part is there" in process.out.read_text())
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in said
    assert names_in(target) == []
    assert plain_counts(target) == [0] * 9
    again = start("-c", IN_PARTS, "go on", *urls)
    said, errors = again.communicate(240)
    assert again.returncode == 0, errors
    assert "storage: 120 trials copied" in said
    there, here = (load_study(open_storage(url), "storage") for url in (target, parts))
    assert facts(there) == facts(here)


def plain_counts(url: str) -> list[int]:
    with sa.create_engine(parse_url(url)).connect() as c:
        return [
            c.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in (*rows._STUDY_TABLES, *rows._TRIAL_TABLES)
        ]


def test_urls_of_one_database_are_known_as_such() -> None:
    one = "postgresql://a:b@host/d"
    for same in ("postgresql+psycopg://host:5432/d?sslmode=require", "postgresql:///d?host=host"):
        assert run._place(same) == run._place(one)
    for other in ("postgresql://host:5433/d", "postgresql:///d?host=/run", "postgresql://host/e"):
        assert run._place(other) != run._place(one)
    here = Path.cwd() / "d.db"
    assert run._place(f"sqlite:///file:{here}?mode=ro&uri=true") == run._place("sqlite:///d.db")


# -- mistakes --------------------------------------------------------------------------------


def refused(source: str, target: str, study: str = "s") -> str:
    """What a command that has to fail says: one line, without a password."""
    with pytest.raises(UserError) as error:
        main(["--study", study, "--from", source, "--to", target])
    line = str(error.value)
    assert "\n" not in line
    assert PASSWORD not in line
    return line


def test_a_mistake_is_one_line_and_exit_code_2(source: str, tmp_path: Path, start: Start) -> None:
    target = f"sqlite:///{tmp_path}/no/s.db"
    done = start("-m", "hpo.move", "--all", "--from", source, "--to", target)
    out, err = done.communicate(240)
    assert (done.returncode, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: can't open sqlite:///")
    assert "check that its directory exists" in line


def test_wrong_urls_and_names_are_one_line(
    source: str, new_database: NewDatabase, postgres: Postgres, tmp_path: Path
) -> None:
    target = new_database("postgresql")
    assert "write one like sqlite:///runes.db" in refused(source, "runes.db")
    assert "storage is on mysql" in refused("mysql://h/d", target)
    assert "no such database" in refused(f"sqlite:///{tmp_path}/nothing.db", target)
    assert not (tmp_path / "nothing.db").exists()
    assert "has no studies" in refused(target, source)
    assert "write two databases" in refused(source, source)
    assert "in memory" in refused(source, "sqlite://")
    assert "has no study 'u'; it has: s, t" in refused(source, target, "u")
    assert "no such study file" in refused(source, target, "no/u.toml")
    wrong = target.replace(PASSWORD, "wrong")
    assert "password authentication failed" in refused(source, wrong)
    assert "password authentication failed" in refused(wrong, source)
    assert "check host and port" in refused(source, target.replace(str(postgres.port), "9"))
    assert "create that database" in refused(source, postgres.url("nowhere"))


def test_what_is_missing_is_said_and_may_come_from_the_environment(
    source: str,
    new_database: NewDatabase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = new_database("sqlite")
    for arguments, words in [
        (["--from", source, "--to", target], "--study is missing; write a study's name, or --all"),
        (["--all", "--from", source], "--to is missing; write a URL like"),
        (["--all", "--to", target], "RUNES_FROM"),
    ]:
        with pytest.raises(UserError) as error:
            main(arguments)
        assert words in str(error.value)
    monkeypatch.setenv("RUNES_FROM", source)
    monkeypatch.setenv("RUNES_TO", target)
    assert main(["--study", "t"]) == 0
    assert names_in(target) == ["t"]


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_a_newer_release_are_one_line(
    source: str, new_database: NewDatabase, kind: str
) -> None:
    newer = new_database(kind)
    with open_storage(newer).engine.begin() as c:
        c.exec_driver_sql("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    assert "install that release, or name another database" in refused(source, newer)
    assert "install that release, or name another database" in refused(newer, source)


def test_rights_to_read_are_enough_for_a_source_and_too_few_for_a_target(
    postgres: Postgres, new_database: NewDatabase
) -> None:
    url = postgres.create("rights")
    make_study(url, [optuna.trial.create_trial(value=1.0)], {})
    roles = ("rights_reader", "rights_stranger")
    for role in roles:
        postgres.sql(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    postgres.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO rights_reader", "rights")
    reader, stranger = (url.replace("//runes:", f"//{role}:") for role in roles)
    target = new_database("sqlite")
    assert "permission denied" in refused(stranger, target)
    move(reader, target)
    assert facts(plain(target)) == facts(plain(url))
    other = new_database("sqlite")
    make_study(other, [], {}, "u")
    for role in (reader, stranger):
        line = refused(other, role, "u")
        assert "permission denied" in line
        assert "grant the user its rights" in line
    empty = postgres.create("rights_none").replace("//runes:", "//rights_reader:")
    assert "permission denied" in refused(other, empty, "u")


def test_a_file_that_may_not_be_written_can_be_moved_from(
    source: str, new_database: NewDatabase, tmp_path: Path
) -> None:
    path = str(tmp_path / "without_log.db")
    with (
        closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as old,
        closing(sqlite3.connect(path)) as new,
    ):
        old.backup(new)
        new.execute("PRAGMA journal_mode=DELETE")
    before = Path(path).read_bytes()
    move(f"sqlite:///file:{path}?mode=ro&uri=true", new_database("postgresql"))
    move(f"sqlite:///{path}", new_database("postgresql"))
    assert Path(path).read_bytes() == before


def test_what_the_target_can_not_hold_is_one_line(source: str, new_database: NewDatabase) -> None:
    storage = open_storage(source)
    target = new_database("postgresql")
    study_id = storage.get_study_id_from_name("s")
    with storage.engine.begin() as c:
        row = {"study_id": study_id, "key": "k\0", "value_json": "1"}
        c.execute(sa.insert(STUDY_SYSTEM_ATTRS).values(row))
    line = refused(source, target)
    assert "can't hold study s as it is, and nothing was kept: " in line
    assert "NUL" in line
    with storage.engine.begin() as c:
        changed = sa.update(STUDY_SYSTEM_ATTRS).where(STUDY_SYSTEM_ATTRS.c.key == "k\0")
        c.execute(changed.values(key="k" * 600))
    assert "too long" in refused(source, target)
    assert names_in(target) == []
