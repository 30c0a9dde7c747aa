"""The command: what it prints, and that it only reads."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpo.analysis.events import Event
from hpo.analysis.importance import Importance
from hpo.analysis.status import Best, Confirmed, Pace, Status, Worker
from hpo.errors import UserError
from hpo.status import main, to_json, to_text
from hpo.storage.open import load_study, open_existing, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.study.config import StudyConfig, load_study_file
from tests.hpo.stored import make_confirmation

FILE = """
name = "s"
storage = "sqlite:///{path}"
[instances]
source = "drawn"
[space.lr]
type = "float"
low = 1e-4
high = 1e-2
log = true
"""
STATUS = Status(
    study="s",
    storage="sqlite:///s.db",
    at="2026-01-15T12:00:00+00:00",
    states={"running": 2, "waiting": 0, "complete": 5, "pruned": 1, "fail": 0},
    outcomes={"complete": 5, "infeasible": 1},
    finished=6,
    best=(
        Best(11, 0.2, 0.01, 79.0, {"lr": 0.002, "train_groups": ["up", "output"]}, {"lr": 0.002}),
        Best(2, 0.3, None, None, None, {"lr": 0.001}),
        Best(3, 0.4, None, None, {}, {"lr": 0.004}, cost=1.62),
    ),
    pace=Pace(12.0, 6, 1800.0, True),
    workers=(Worker("host:1", 12, 3.0, True), Worker("host:2", 13, 91.0, False)),
    no_heartbeat=0,
    compute_s=3600.0,
    budget={"trials": 30, "target": 0.01},
    spent=None,
    time_left_s=7200.0,
    time_left_unknown=None,
    importances=(Importance("lr", 0.9, 0.05), Importance("scale", 0.1, 0.05)),
    importances_unknown=None,
)


def test_the_text_is_short_lines_that_begin_with_what_they_are_about() -> None:
    assert to_text(STATUS).splitlines() == [
        "study       s in sqlite:///s.db",
        "trials      6 finished, running 2, waiting 0, complete 5, pruned 1, fail 0",
        "outcomes    complete 5, infeasible 1",
        "workers     1 alive",
        "worker      host:1  trial 12  alive, last heartbeat 3 s ago",
        "worker      host:2  trial 13  silent for 91 s",
        "pace        12.0 trials/h (6 finished since the start, 30.0 min in which any trial ran)",
        "compute     60.0 min in finished trials",
        "time left   2.0 h at this pace",
        "budget      trials 30, target 0.01",
        "best        trial 11  loss 0.2000 ± 0.0100  longest call 79.0 s",
        "              lr=0.002  train_groups=up+output",
        "best        trial  2  loss 0.3000",
        "              lr=0.001",
        "best        trial  3  loss 0.4000",
        "              cost of an answer: 1.6 of the plain network's",
        "              the default recipe",
        "importance  lr     0.90 ± 0.05",
        "importance  scale  0.10 ± 0.05",
    ]


def test_what_is_not_known_is_said() -> None:
    nothing = replace(STATUS, outcomes={}, best=(), pace=None, workers=(), no_heartbeat=2)
    nothing = replace(nothing, budget={}, time_left_s=None, time_left_unknown="so")
    nothing = replace(nothing, importances=(), importances_unknown="as well")
    text = to_text(nothing)
    for line in (
        "outcomes    none yet",
        "workers     0 alive; running without heartbeats, by other programs: 2",
        "pace        unknown: no trial has run yet",
        "time left   unknown: so",
        "budget      none",
        "best        no trial is complete and feasible",
        "importance  unknown: as well",
    ):
        assert line in text.splitlines()


def test_a_pace_without_workers_is_one_for_later_and_a_spent_budget_is_told() -> None:
    text = to_text(replace(STATUS, workers=(), spent="trial 11 reached 0.0090"))
    assert "time left   2.0 h at this pace, once a worker runs" in text
    assert "budget      trials 30, target 0.01; spent: trial 11 reached 0.0090" in text
    assert "calls" not in text
    assert "calls       12 kept" in to_text(replace(STATUS, kept_calls=12)).splitlines()


@pytest.mark.parametrize(
    ("confirmed", "line"),
    [
        (
            Confirmed("best 2", 17, 0.0812, 0.0031, -0.0031, -0.0047, -0.0015),
            "trial 17  loss 0.0812 ± 0.0031  -0.0031 (95 % -0.0047 to -0.0015) to the default's",
        ),
        (Confirmed("default", 0, 0.08, None, None, None, None), "trial 0, the default recipe"),
        (Confirmed("mine.json", None, 0.08, None, -0.1, None, None), "mine.json  loss 0.0800  -0."),
    ],
)
def test_a_confirmed_result_is_a_line(confirmed: Confirmed, line: str) -> None:
    text = to_text(replace(STATUS, confirmed=confirmed))
    (found,) = [x for x in text.splitlines() if x.startswith("confirmed   ")]
    assert found.removeprefix("confirmed   ").startswith(line)


def test_the_last_ten_events_are_lines_and_json_has_them_all() -> None:
    events = tuple(
        Event(f"2026-01-15T11:{60 - i}:00+00:00", f"vm:{i}#{i}", "vm", i, "ended", "limit",
              reason="9 s are over")
        for i in range(1, 13)
    )  # fmt: skip
    status = replace(STATUS, events=events)
    lines = [line for line in to_text(status).splitlines() if line.startswith("event ")]
    assert len(lines) == 10
    assert lines[0] == (
        "event       vm:1#1 ended (limit) at 2026-01-15T11:59:00+00:00: 9 s are over"
    )
    told = json.loads(to_json(status))["events"]
    assert len(told) == 12
    assert told[0] == {
        **{"at": "2026-01-15T11:59:00+00:00", "worker": "vm:1#1", "host": "vm", "process": 1},
        **{"what": "ended", "why": "limit", "trial": None, "reason": "9 s are over"},
    }


def test_many_values_are_wrapped_and_many_parameters_cut_short() -> None:
    many = {f"parameter_{i}": 0.123456 for i in range(25)}
    text = to_text(
        replace(
            STATUS,
            best=(replace(STATUS.best[0], changed=many),),
            importances=tuple(Importance(name, 0.04, 0.02) for name in many),
        )
    )
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("=0.1235") == 25
    assert text.count("0.04 ± 0.02") == 10
    assert "importance  15 more, at most 0.04 each: see --json" in text


def test_json_holds_the_same_facts_as_numbers_and_nulls() -> None:
    odd = replace(STATUS.best[0], loss=math.inf, standard_error=math.nan)
    text = to_json(replace(STATUS, best=(odd,)))
    read = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert set(read) == set(Status.__dataclass_fields__)
    assert read["best"][0]["loss"] is None
    assert read["best"][0]["standard_error"] is None
    assert read["best"][0]["changed"] == {"lr": 0.002, "train_groups": ["up", "output"]}
    assert read["pace"]["trials_per_hour"] == 12.0
    assert read["workers"][1] == {"worker": "host:2", "trial": 13, "silent_s": 91.0, "alive": False}
    assert read["budget"] == {"trials": 30, "target": 0.01}
    assert read["time_left_s"] == 7200.0
    assert read["time_left_unknown"] is None
    assert read["importances"][0] == {"name": "lr", "share": 0.9, "standard_error": 0.05}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    monkeypatch.delenv("RUNES_STORAGE", raising=False)
    (tmp_path / "s.toml").write_text(FILE.format(path=tmp_path / "s.db"))
    return load_study_file(str(tmp_path / "s.toml"))


def made(config: StudyConfig, losses: int) -> StudyStorage:
    """A study with ``losses`` complete trials whose loss depends on ``lr`` alone."""
    storage = open_storage(config.storage, worker="me")
    storage.create_study(config.name, {}, [])
    study = load_study(storage, config.name, optuna.samplers.RandomSampler(seed=0))
    for _ in range(losses):
        trial_id = storage.claim(study._study_id, None)
        assert isinstance(trial_id, int)
        run = optuna.Trial(study, trial_id)
        with storage.batch(trial_id) as writes:
            lr = run.suggest_float("lr", 1e-4, 1e-2, log=True)
            run.suggest_float("scale", 0.0, 0.4)
            run.set_user_attr("outcome", "complete")
            writes.state, writes.values = TrialState.COMPLETE, [abs(math.log(lr / 1e-3))]
    return storage


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_the_command_reads_a_real_study(
    config: StudyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = made(config, 25)
    study_id = load_study(storage, config.name)._study_id
    held = storage.claim(study_id, None)
    read = json.loads(told(capsys, "--study", str(tmp_path / "s.toml"), "--json", "--best", "3"))
    assert read["states"] == {"complete": 25, "running": 1, "waiting": 0, "pruned": 0, "fail": 0}
    assert read["outcomes"] == {"complete": 25}
    losses = [b["loss"] for b in read["best"]]
    assert len(losses) == 3
    assert losses == sorted(losses)
    (worker,) = read["workers"]
    assert (worker["worker"], worker["trial"], worker["alive"]) == ("me", 25, True)
    assert read["importances"][0]["name"] == "lr"
    assert read["importances"][0]["share"] > 0.5
    assert read["importances_unknown"] is None

    with storage.engine.begin() as c:
        long_ago = sa.text(
            "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-300 seconds')"
        )
        c.execute(long_ago)
    text = told(capsys, "--study", str(tmp_path / "s.toml"))
    assert "workers     0 alive" in text
    assert "silent for 30" in text
    assert storage.get_trial(held).state == TrialState.RUNNING  # type: ignore[arg-type]


@pytest.mark.parametrize("odd", ["x", [1], {"trial": 4}, {"name": 1, "loss": 0.1}, {"loss": "low"}])
def test_a_foreign_confirmation_is_a_remark(
    config: StudyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], odd: object
) -> None:
    study = load_study(made(config, 1), config.name)
    study.set_user_attr("confirmed", odd)
    text = told(capsys, "--study", str(tmp_path / "s.toml"))
    assert "\nconfirmed   is not what this release stores (" in text
    assert "; confirm again by python -m hpo.confirm\n" in text
    read = json.loads(told(capsys, "--study", str(tmp_path / "s.toml"), "--json"))
    assert read["confirmed"] is None
    assert "confirm again" in read["confirmed_unreadable"]
    study.set_user_attr("confirmed", make_confirmation(0).to_json())
    read = json.loads(told(capsys, "--study", str(tmp_path / "s.toml"), "--json"))
    assert read["confirmed"] == {
        **{"name": "best 2", "trial": 0, "loss": 0.0812, "standard_error": 0.0031},
        **{"difference": -0.0031, "low": -0.0047, "high": -0.0015},
    }
    assert read["confirmed_unreadable"] is None


def test_foreign_attributes_of_trials_are_remarks(
    config: StudyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = made(config, 2)
    study = load_study(storage, config.name)
    trial_id = storage.claim(study._study_id, None)
    assert isinstance(trial_id, int)
    odd = {"standard_error": "small", "cost": [1], "outcome": "given up", "instances": [{}]}
    run = optuna.Trial(study, trial_id)
    with storage.batch(trial_id) as writes:
        run.suggest_float("lr", 1e-4, 1e-2, log=True)
        for key, value in odd.items():
            run.set_user_attr(key, value)
        writes.state, writes.values = TrialState.COMPLETE, [0.0]
    text = told(capsys, "--study", str(tmp_path / "s.toml"), "--best", "1")
    assert "outcomes    complete 2, given up 1" in text
    assert "best        trial 2  loss 0.0000\n" in text
    assert "unreadable  trial 2: " in text
    assert ", and 3 more: see --json" in text
    read = json.loads(told(capsys, "--study", str(tmp_path / "s.toml"), "--json"))
    assert sorted(read["unreadable"]) == [
        "trial 2: cost should be a valid number",
        "trial 2: instances.0.instance is missing",
        "trial 2: instances.0.loss is missing",
        "trial 2: standard_error should be a valid number",
    ]


def test_few_trials_say_how_many_are_missing(
    config: StudyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(config, 3)
    text = told(capsys, "--study", str(tmp_path / "s.toml"))
    assert "importance  unknown: 17 more complete trials are needed, of 20" in text


def test_where_there_is_no_database_none_is_made(config: StudyConfig, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    advice = r"no such database; start a worker first: python -m hpo\.worker --study .*s\.toml"
    for url in ((), ("--storage", "sqlite://"), ("--storage", f"sqlite:///{tmp_path}/no/x.db")):
        # The same database is named to the worker.
        with pytest.raises(UserError, match=f"{advice}{' '.join(('', *url))}$"):
            main(["--study", str(tmp_path / "s.toml"), *url])
    assert sorted(tmp_path.iterdir()) == before


def test_where_there_are_no_tables_none_are_made(config: StudyConfig, tmp_path: Path) -> None:
    (tmp_path / "s.db").touch()
    with pytest.raises(UserError, match="has no studies; start a worker first"):
        main(["--study", str(tmp_path / "s.toml")])
    assert (tmp_path / "s.db").stat().st_size == 0


def test_a_missing_study_is_not_made_and_those_there_are_listed(
    config: StudyConfig, tmp_path: Path
) -> None:
    storage = open_storage(config.storage)
    storage.create_study("other", {}, [])
    with pytest.raises(UserError, match=r"has no study 's'; it has: other$"):
        main(["--study", str(tmp_path / "s.toml")])
    assert [s.study_name for s in storage.get_all_studies()] == ["other"]


def test_a_database_that_cannot_be_opened_is_one_line_without_the_password(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("this is no database, however long it may be" * 100)
    with pytest.raises(UserError, match=r"can't open sqlite:///.*x\.db: file is not a database"):
        open_existing(f"sqlite:///{tmp_path}/x.db", "s")
    with pytest.raises(
        UserError, match=r"can't open postgresql://me:\*\*\*@127\.0\.0\.1:9/runes: "
    ) as error:
        open_existing("postgresql://me:secret@127.0.0.1:9/runes", "s")  # nothing listens there
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_options_are_told(config: StudyConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--best is -1; write 0 or more"):
        main(["--study", str(tmp_path / "s.toml"), "--best", "-1"])


def test_the_command_needs_no_torch() -> None:
    code = "import sys, hpo.status; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
