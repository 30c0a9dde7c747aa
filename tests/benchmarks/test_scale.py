"""The simulation of many workers: it plays the real thing, loses nothing, and adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from benchmarks.postgres import Postgres
from benchmarks.scale import main, recorded_calls
from benchmarks.scale_fill import DISTINCT, fill_many
from benchmarks.scale_player import OPERATIONS
from benchmarks.scale_table import estimate, to_text
from benchmarks.storage_fill import STUDY
from finetune.errors import UserError
from hpo.storage.open import load_study, open_storage

IMPORTED = ("benchmarks.scale_player", "alembic.command", "alembic.ddl", "psycopg")


def test_repeated_trials_are_whole_and_numbered_in_their_order(postgres: Postgres) -> None:
    url = postgres.create("filled")
    fill_many(url, DISTINCT + 7)
    trials = load_study(open_storage(url), STUDY).get_trials(deepcopy=False)
    assert [t.number for t in trials] == list(range(DISTINCT + 7))
    for trial, model in zip(trials[DISTINCT:], trials[:7], strict=True):
        assert trial.state == model.state
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        assert (trial.params, trial.values) == (model.params, model.values)
        assert trial.intermediate_values == model.intermediate_values
        assert trial.user_attrs == model.user_attrs
        assert trial.constraints == model.constraints


def test_recorded_calls_are_stretched_as_a_whole() -> None:
    calls, slower = recorded_calls(10.0), recorded_calls(30.0)
    flat = [s for row in calls for s in row]
    assert sum(flat) / len(flat) == pytest.approx(10.0)
    assert len(set(flat)) > 50
    assert [3 * s for s in calls[0]] == pytest.approx(slower[0])


@pytest.mark.usefixtures("quick_starts")
def test_a_small_play_finishes_trials_and_hands_the_rest_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    asked = ["--stored", "40", "--seconds", "4", "--call-s", "50", "--compress", "100"]
    assert main([*asked, "--workers", "1", "3", "--label", "small", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["workers"] for r in rows] == [1, 3]
    for row in rows:
        assert row["finished_in_all"] >= row["trials"]
        assert row["failures"] == []
        assert row["operations"].keys() == set(OPERATIONS)
        assert row["operations"]["report"]["n"] > 0
        assert row["server_cpu_s"] > 0
        assert row["commits_per_s"] > 0
        assert row["locks"]["connections_most"] >= row["workers"]
    assert rows[0]["finished_in_all"] > 0
    assert rows[1]["operations"]["beat"]["n"] > 0
    shown = capsys.readouterr().out
    assert main(["--show", str(out)]) == 0
    assert capsys.readouterr().out == shown


def test_a_number_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match="--compress is not positive"):
        main(["--compress", "0"])
    with pytest.raises(UserError, match="--workers has a number below 1"):
        main(["--workers", "0"])


def row(workers: int, share: float, compress: float = 1.0, **more: Any) -> dict[str, Any]:
    times = {"n": 9, "median_ms": 20.0, "error_ms": 1.0, "p99_ms": 30.0}
    return {
        **{"workers": workers, "stored": 100, "call_s": 10.0, "label": "", "compress": compress},
        **{"server_cpu_share": share * compress, "trial_rate_per_worker": 0.0125},
        **{"operations": dict.fromkeys(OPERATIONS, times)},
        **more,
    }


def test_the_estimate_takes_up_what_grows_with_workers_and_with_their_square() -> None:
    shares = {w: 0.002 * w + 0.00001 * w * w for w in (50, 200, 500)}
    rows = [row(1, 0.5, 100.0), *(row(w, s, compress=w / 50) for w, s in shares.items())]
    found = estimate(rows, 1000)
    assert found is not None
    assert found.trials_per_s == pytest.approx(12.5)
    assert found.server_cores == pytest.approx(12.0)
    assert found.lock_share == pytest.approx(0.25)
    # M/M/1: the mean wait is the service time times the share over what is left.
    assert found.lock_wait_ms == pytest.approx(20.0 / 3)
    full = estimate(rows, 10_000)
    assert full is not None
    assert full.lock_share == pytest.approx(2.5)
    assert full.lock_wait_ms is None


def test_cases_of_two_kinds_are_not_mixed() -> None:
    rows = [row(1, 0.1), row(50, 0.1), row(200, 0.4)]
    assert estimate(rows, 500) is not None
    assert estimate([*rows[:2], row(200, 0.4, label="other")], 500) is None
    assert estimate(rows[1:], 500) is None
    assert "on paper" not in to_text([])
