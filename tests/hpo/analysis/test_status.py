"""What is known of a study at one moment: counts, pace and time left in closed form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from finetune.recipe import Recipe
from hpo.analysis.status import Status, status_of
from hpo.storage.recovery import Heartbeat
from hpo.study.config import StudyConfig, load_study_file
from hpo.trial.outcome import Outcome
from hpo.trial.ranking import OVER_LIMIT

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
[budget]
trials = 30
target = 0.01
"""
NOW = datetime(2026, 1, 15, 12, 0, 0)  # of no meaning: naive local time, as trials have it
URL = "postgresql://me:secret@host/runes"
LR = optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    (tmp_path / "s.toml").write_text(FILE.format(path=tmp_path / "s.db"))
    return load_study_file(str(tmp_path / "s.toml"))


def trial(
    number: int,
    start_s: float,
    end_s: float | None,
    outcome: Outcome | None = Outcome.COMPLETE,
    loss: float | None = 0.1,
    **attrs: Any,
) -> FrozenTrial:
    """A trial that ran from ``start_s`` to ``end_s``, in seconds before `NOW`."""
    state = TrialState.RUNNING if end_s is None else (outcome or Outcome.COMPLETE).state
    over = attrs.pop("over", 0.0)
    return FrozenTrial(
        number=number,
        trial_id=100 + number,
        state=state,
        value=loss if state == TrialState.COMPLETE else None,
        datetime_start=NOW - timedelta(seconds=start_s),
        datetime_complete=None if end_s is None else NOW - timedelta(seconds=end_s),
        params={"lr": 1e-3},
        distributions={"lr": LR},
        user_attrs={
            **attrs,
            **({"outcome": outcome.value} if outcome and state.is_finished() else {}),
        },
        system_attrs={f"constraints:{OVER_LIMIT}": over},
        intermediate_values={},
    )


def beat(number: int, age_s: float) -> Heartbeat:
    return Heartbeat(100 + number, number, f"host:{number}", NOW, age_s)


def status(
    config: StudyConfig,
    trials: Sequence[FrozenTrial],
    beats: Sequence[Heartbeat] = (),
    best: int = 5,
) -> Status:
    return status_of(config, URL, trials, beats, NOW, best)


def test_pace_since_the_start_and_time_left(config: StudyConfig) -> None:
    # Half an hour of two workers at once, six trials finished; 24 of the budget are left.
    trials = [trial(i, 1800 - 600 * (i // 2), 1200 - 600 * (i // 2)) for i in range(6)]
    s = status(config, trials)
    assert s.pace is not None
    assert s.pace.since_start
    assert s.pace.active_s == pytest.approx(1800)
    assert s.pace.trials_per_hour == pytest.approx(12)
    assert s.time_left_s == pytest.approx(24 / 12 * 3600)
    assert s.time_left_unknown is None
    assert s.compute_s == pytest.approx(6 * 600)


def test_pace_is_of_the_last_hour_in_which_trials_ran(config: StudyConfig) -> None:
    # Yesterday ten short trials in 100 minutes, today 30 minutes of one long one that runs on.
    day = 86400
    trials = [trial(i, day - 600 * i, day - 600 * (i + 1)) for i in range(10)]
    s = status(config, [*trials, trial(10, 1800, None)], [beat(10, 1.0)])
    assert s.pace is not None
    assert not s.pace.since_start
    assert s.pace.active_s == pytest.approx(3600)
    assert s.pace.finished == 3
    assert s.time_left_s == pytest.approx(20 / 3 * 3600)


def test_silence_is_no_activity(config: StudyConfig) -> None:
    trials = [
        trial(0, 4000, 3000),
        trial(1, 90_000, 89_000, Outcome.LOST_WORKER),  # its end is its last sign of life
        trial(2, 3000, None),  # silent since 2000 s
    ]
    s = status(config, trials, [beat(2, 2000.0)])
    assert s.pace is not None
    assert s.pace.active_s == pytest.approx(3000)
    assert s.pace.finished == 2


def test_time_left_is_nothing_or_unknown_for_a_reason(config: StudyConfig) -> None:
    assert status(config, []).time_left_unknown == "no trial has run yet"
    running = status(config, [trial(0, 60, None)], [beat(0, 1.0)])
    assert running.time_left_s is None
    assert running.time_left_unknown is not None
    assert "no trial has finished" in running.time_left_unknown
    over = status(config, [trial(i, 100, 50) for i in range(31)])
    assert over.time_left_s == 0.0
    assert over.spent == "30 trials are finished"
    free = config.model_copy(update={"budget": config.budget.model_copy(update={"trials": None})})
    s = status_of(free, URL, [trial(0, 100, 50)], [], NOW)
    assert s.time_left_unknown == "the study file sets no budget of trials"
    assert s.budget == {"target": 0.01}


def test_counts_by_state_and_by_outcome(config: StudyConfig) -> None:
    trials = [
        trial(0, 900, 800),
        trial(1, 800, 700, Outcome.INFEASIBLE),
        trial(2, 700, 600, Outcome.BUG),
        trial(3, 600, 500, None),  # of a program that records no outcome
        trial(4, 500, None),
        trial(5, 400, None),
    ]
    s = status(config, trials, [beat(4, 2.0)])
    assert s.states == {"running": 2, "waiting": 0, "complete": 2, "pruned": 1, "fail": 1}
    assert s.outcomes == {"complete": 1, "infeasible": 1, "bug": 1, "not recorded": 1}
    assert s.finished == 4
    assert s.no_heartbeat == 1


def test_workers_are_alive_within_the_grace_and_silent_after(config: StudyConfig) -> None:
    grace_s = config.recovery.grace_s
    trials = [trial(i, 1000, None) for i in range(3)]
    s = status(config, trials, [beat(0, 0.0), beat(1, grace_s), beat(2, grace_s + 1)])
    assert [w.alive for w in s.workers] == [True, True, False]
    assert s.no_heartbeat == 0


def test_the_best_are_feasible_and_named_by_what_they_change(config: StudyConfig) -> None:
    changed = json.dumps(Recipe(lr=2e-3, train_groups=("up", "output")).to_dict())
    trials = [
        trial(0, 900, 800, loss=0.05, over=3.0),
        trial(1, 800, 700, loss=0.2, recipe=changed, standard_error=0.01, longest_call_s=79.0),
        trial(2, 700, 600, loss=0.3),
        trial(3, 600, 500, loss=0.4, recipe=json.dumps({"of another": "release"})),
        trial(4, 500, 400, loss=0.5, recipe=json.dumps(Recipe().to_dict())),
        trial(5, 400, 300, loss=0.6),
    ]
    s = status(config, trials, best=4)
    assert [b.trial for b in s.best] == [1, 2, 3, 4]
    assert s.best[0].changed is not None
    assert set(s.best[0].changed) == {"lr", "train_groups"}
    assert s.best[0].params == {"lr": 1e-3}
    assert (s.best[0].loss, s.best[0].standard_error, s.best[0].longest_call_s) == (0.2, 0.01, 79.0)
    assert [b.changed for b in s.best[1:]] == [None, None, {}]
    assert status(config, trials, best=0).best == ()


def test_the_password_is_hidden(config: StudyConfig) -> None:
    s = status(config, [trial(0, 100, 50)])
    assert s.storage == "postgresql://me:***@host/runes"
    assert "secret" not in repr(s)
