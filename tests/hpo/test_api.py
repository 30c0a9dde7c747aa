"""A study in Python, on a method without torch."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType

import optuna
import pytest

import hpo
from hpo import OpenStudy, UserError, open_study

STUDY = Path(__file__).parents[1] / "cheap.toml"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenStudy:
    """A study of five trials, three of them run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNES_STORAGE", raising=False)
    shutil.copy(STUDY, tmp_path / "mine.toml")
    opened = open_study("mine.toml", f"sqlite:///{tmp_path}/mine.db")
    opened.run(trials=3)
    return opened


def test_what_is_public_is_written_down() -> None:
    assert set(hpo.__all__) == {"DatabaseAwayError", "OpenStudy", "UserError", "open_study"}
    with pytest.raises(AttributeError, match="has no attribute 'open_studies'"):
        hpo.open_studies  # noqa: B018


def test_it_runs_looks_and_queues(study: OpenStudy) -> None:
    status = study.status()
    assert status.finished == 3
    assert status.best[0].loss == study.optuna.best_value
    assert study.enqueue({"lr": 0.005}) == 3
    study.run(trials=4)
    assert study.optuna.trials[3].params["lr"] == 0.005
    with pytest.raises(UserError, match=r"^lr is 5\.0; write "):
        study.enqueue({"lr": 5.0})
    assert len(study.optuna.trials) == 4


def test_optunas_plots_take_it(study: OpenStudy) -> None:
    axes = optuna.visualization.matplotlib.plot_optimization_history(study.optuna)
    assert axes.get_xlabel() == "Trial"


def test_trials_are_rows_of_a_frame_where_pandas_is(
    study: OpenStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas = ModuleType("pandas")
    pandas.DataFrame = list  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    rows = list(study.trials())
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert {"state", "outcome", "loss", "standard_error", "lr"} <= set(rows[0])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"^a data frame needs pandas; pip install pandas$"):
        study.trials()


def test_a_database_that_is_not_there_is_one_line(study: OpenStudy, tmp_path: Path) -> None:
    other = open_study("mine.toml", f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(UserError, match=r"other\.db: no such database; start a worker first"):
        other.status()
    assert not (tmp_path / "other.db").exists()


def test_a_published_database_is_looked_at(tmp_path: Path) -> None:
    results = Path(hpo.__file__).parent / "studies" / "results"
    with open_study("runes-short", str(results / "runes-short.db.gz")) as study:
        assert study.status().finished == len(study.optuna.trials) > 0
