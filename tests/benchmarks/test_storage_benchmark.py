"""The storage benchmark fills databases faithfully, and both sides finish each trial just once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from benchmarks.storage import Results, latency_ms, main, ratio, wall_ms
from benchmarks.storage_case import Case, measure
from benchmarks.storage_fill import REPORTS, STUDY, fill, make_trials
from benchmarks.storage_services import SERVICES, Done, Phase, System
from hpo.study.config import load_study_file

STORED, WORKERS, TRIALS = 20, 2, 4
IMPORTED = ("benchmarks.storage_case", "alembic.command", "alembic.ddl", "psycopg")
pytestmark = pytest.mark.usefixtures("quick_starts")


@pytest.fixture(scope="module")
def stored() -> list[FrozenTrial]:
    return make_trials(load_study_file("runes-default"), STORED)


def contents(trial: FrozenTrial) -> tuple[Any, ...]:
    return (
        *(trial.number, trial.state, trial.values, trial.params, trial.distributions),
        *(trial.user_attrs, trial.system_attrs, trial.intermediate_values),
    )


def read(url: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name=STUDY, storage=url).trials


def test_a_filled_database_holds_what_the_trials_hold(
    tmp_path: Path, stored: list[FrozenTrial]
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    fill(url, stored)
    assert [contents(t) for t in read(url)] == [contents(t) for t in stored]
    assert {t.state for t in stored} == {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.parametrize("system", SERVICES)
def test_each_trial_is_finished_once_with_all_that_it_writes(
    tmp_path: Path, stored: list[FrozenTrial], system: System
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    fill(url, stored)
    case = Case(system, "sqlite", STORED, WORKERS, url, TRIALS, seconds=60.0, think_s=0.05)
    measured = measure(case)
    counts = len(measured.flat.done), len(measured.calm.done), measured.errors
    assert counts == (TRIALS, TRIALS, 0)
    trials = read(url)
    assert [t.number for t in trials] == list(range(STORED + 1 + 2 * TRIALS))
    for trial in trials[STORED:]:
        assert trial.state == TrialState.COMPLETE
        assert list(trial.intermediate_values) == list(range(1, REPORTS + 1))
        assert stored[0].user_attrs.keys() <= trial.user_attrs.keys()
        assert len(trial.user_attrs["instances"]) == REPORTS
        assert stored[0].constraints.keys() <= trial.constraints.keys()


@pytest.mark.parametrize("system", SERVICES)
def test_workers_that_sleep_in_a_trial_finish_it_too(
    tmp_path: Path, stored: list[FrozenTrial], system: System
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    fill(url, stored)
    measured = measure(Case(system, "sqlite", STORED, 3, url, 6, seconds=0.01, think_s=None))
    assert measured.calm_workers == 1  # a trial takes longer than a hundredth of a second
    assert len(measured.calm.done) >= 1
    states = [t.state for t in read(url)[STORED:]]
    done = len(measured.flat.done) + len(measured.calm.done)
    assert states == [TrialState.COMPLETE] * (1 + done + 2)


def test_a_run_ends_with_a_table_and_the_goals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["--stored", "15", "--workers", "1", "--trials", "3", "--seconds", "60"]
    assert main([*arguments, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["storage"], r["system"]) for r in rows] == [
        *(("sqlite", "ours"), ("sqlite", "plain")),
        *(("postgres", "ours"), ("postgres", "plain")),
    ]
    for row in rows:
        assert (row["latency_trials"], row["flat_trials"], row["errors"]) == (3, 3, 0)
        assert row["latency_ms"] > 0
        assert row["flat_ms"] > 0
    printed = capsys.readouterr().out
    assert "postgres, 15, 1 worker" in printed
    assert "32 workers, below 100 ms: not measured" in printed


def test_the_wall_clock_is_counted_from_the_meeting_to_the_last_finish() -> None:
    done = [Done(at=10.0 + 0.1 * i, latency_s=0.05) for i in range(1, 17)]
    value, error = wall_ms(Phase(10.0, done))
    assert value == pytest.approx(100.0)
    assert error == pytest.approx(0.0, abs=1e-6)  # all batches alike


def test_the_latency_is_the_median_and_one_trial_has_no_error() -> None:
    latencies = [0.01, 0.02, 0.03, 0.04, 9.0]
    value, error = latency_ms(Phase(0.0, [Done(float(i), s) for i, s in enumerate(latencies)]))
    assert value == pytest.approx(30.0)
    assert error > 0
    assert math.isnan(latency_ms(Phase(0.0, [Done(1.0, 0.5)]))[1])


def test_a_ratios_error_adds_relative_errors_in_squares() -> None:
    assert ratio((10.0, 0.3), (20.0, 0.8)) == pytest.approx((0.5, 0.025))
    assert ratio(None, (1.0, 0.1)) is None


def row(system: str, storage: str, stored: int, workers: int, ms: float) -> dict[str, Any]:
    return {
        **{"system": system, "storage": storage, "stored": stored, "workers": workers},
        **{"latency_ms": ms, "latency_error_ms": 1.0, "latency_trials": 9},
    }


def test_goals_are_judged_by_their_worst_case() -> None:
    rows = [row("ours", "sqlite", 1000, w, 20.0) for w in (1, 8)]
    rows += [row("plain", "sqlite", 1000, 1, 100.0), row("plain", "sqlite", 1000, 8, 50.0)]
    rows += [row("ours", "sqlite", 10_000, 8, 39.0), row("ours", "postgres", 10_000, 32, 120.0)]
    against, busiest, growth = Results(rows).goals().splitlines()
    assert "MISSED in 1 of 2 cases; the worst is 0.400" in against
    assert "(sqlite, 1000, 8 workers)" in against
    assert "MISSED in 1 of 1 cases; the worst is 120.0" in busiest
    assert "met; the worst is 1.95" in growth
