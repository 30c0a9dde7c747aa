"""A worker of another speed says so."""

from __future__ import annotations

import optuna

from hpo.trial.record import Call, Machine, TrialRecord, write_trial
from hpo.trial.run import Run, runs_of
from hpo.worker.speeds import other_speed


def runs(*speeds: float | None) -> list[Run]:
    study = optuna.create_study()
    for speed in speeds:
        trial = study.ask()
        machine = Machine() if speed is None else Machine(speed=speed)
        write_trial(trial, TrialRecord(machine=machine, instances=(Call(instance="r", loss=1.0),)))
    return runs_of(study.get_trials())


def test_a_worker_of_another_speed_says_so() -> None:
    assert other_speed(runs(10.0, 11.0, 30.0), 10.0) is None
    assert other_speed(runs(10.0, None), 14.0) is None
    told = other_speed(runs(10.0, 10.0, None), 4.0)
    assert told is not None
    assert told.startswith("this worker trains 0.4 times as fast as those that measured so far")
    assert other_speed(runs(None), 4.0) is None
    assert other_speed([], 4.0) is None
    assert other_speed(runs(10.0), None) is None
