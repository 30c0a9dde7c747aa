"""When a study has had enough."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.study.budget import Spent, compute_seconds, why_stop
from hpo.study.config import Budget
from hpo.trial.ranking import OVER_LIMIT

START = datetime(2026, 1, 1)


def trial(
    number: int,
    value: float | None,
    ended_s: float,
    seconds: float = 10.0,
    state: TrialState = TrialState.COMPLETE,
    over_s: float = -1.0,
) -> FrozenTrial:
    made = create_trial(
        state=state, value=value, system_attrs={f"constraints:{OVER_LIMIT}": over_s}
    )
    made.number = number
    made.datetime_start = START + timedelta(seconds=ended_s - seconds)
    made.datetime_complete = START + timedelta(seconds=ended_s)
    return made


TRIALS = [
    trial(0, 0.3, 10),
    trial(1, 0.1, 20, over_s=5.0),  # infeasible: never the best
    trial(2, 0.2, 40),
    trial(3, 0.25, 30),  # ended before the best did
    trial(4, 0.4, 50, state=TrialState.PRUNED),
    trial(5, None, 60, seconds=7.0, state=TrialState.FAIL),
]


@pytest.mark.parametrize(
    ("budget", "spent"),
    [
        (Budget(), None),
        (Budget(trials=1), None),  # claims count those, exactly
        (Budget(seconds=101.0), None),
        (Budget(seconds=100.0), Spent("seconds", "100 s of this worker's time are over")),
        (Budget(compute_seconds=57.1), None),
        (
            Budget(compute_seconds=57.0),
            Spent("compute_seconds", "57 s of compute are spent, of 57"),
        ),
        (Budget(target=0.19), None),
        (Budget(target=0.2), Spent("target", "trial 2 reached 0.2000; the target is 0.2")),
        (Budget(stagnation=3), None),
        (Budget(stagnation=2), Spent("stagnation", "2 trials since the best, trial 2")),
    ],
)
def test_which_part_is_spent(budget: Budget, spent: Spent | None) -> None:
    assert why_stop(budget, 100.0, lambda: TRIALS) == spent


def test_trials_are_not_asked_for_where_nothing_depends_on_them() -> None:
    def ask() -> list[FrozenTrial]:
        raise AssertionError

    assert why_stop(Budget(trials=3, seconds=9.0), 1.0, ask) is None


def test_without_a_feasible_trial_there_is_no_target_and_no_stagnation() -> None:
    budget = Budget(target=1.0, stagnation=1)
    assert why_stop(budget, 0.0, lambda: [TRIALS[1], TRIALS[4], TRIALS[5]]) is None


def test_trials_that_run_have_no_seconds_yet() -> None:
    running = create_trial(state=TrialState.RUNNING)
    assert compute_seconds([TRIALS[0], running]) == 10.0


def test_attempts_that_did_not_finish_a_trial_are_paid_for_once_and_kept_calls_not_again() -> None:
    resumed = trial(6, 0.3, 70, seconds=4.0)
    call = {"instance": "r/0", "loss": 0.3, "seconds": 90.0, "kept": True}
    attempt = {"worker": "a:1#0", "why": "stopped", "lost": False}
    resumed.user_attrs = {
        "instances": [call],
        "attempts": [
            {**attempt, "calls": 1, "seconds": 91.5},
            {**attempt, "calls": 1, "seconds": 2.5, "lost": True},
            attempt,  # an earlier release did not store its seconds
        ],
    }
    assert compute_seconds([TRIALS[0], resumed]) == 10.0 + 4.0 + 91.5 + 2.5
