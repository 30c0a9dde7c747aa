"""Finished trials are read once, whoever finished them and in whatever order."""

from __future__ import annotations

import random

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from hpo.storage.open import load_study, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.storage.tables import states_of, trials_of


class Study:
    """A study of a few workers, and one who only looks."""

    def __init__(self, url: str, workers: int) -> None:
        self.workers = [open_storage(url, worker=f"w{i}") for i in range(workers)]
        self.workers[0].create_study("s", {}, [])
        self.viewer: StudyStorage = open_storage(url, worker="viewer")
        self.id = load_study(self.viewer, "s")._study_id
        self.held: dict[int, optuna.Trial] = {}

    def claim(self, worker: int) -> None:
        storage = self.workers[worker]
        study = load_study(storage, "s", optuna.samplers.RandomSampler(seed=worker))
        trial_id = storage.claim(self.id, None)
        assert isinstance(trial_id, int)
        self.held[worker] = optuna.Trial(study, trial_id)

    def finish(self, worker: int, state: TrialState) -> None:
        trial = self.held.pop(worker)
        values = [1.0] if state == TrialState.COMPLETE else None
        self.workers[worker].set_trial_state_values(trial._trial_id, state, values)

    def truth(self) -> list[FrozenTrial]:
        with self.viewer.engine.connect() as c:
            return trials_of(c, [i for i, _ in states_of(c, self.id)])


def test_a_viewer_sees_what_is_there_whatever_happened_since(url: str) -> None:
    study = Study(url, workers=3)
    rng = random.Random(4)
    finished = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    for _ in range(60):
        worker = rng.randrange(3)
        if worker not in study.held:
            study.claim(worker)
        elif rng.random() < 0.4:
            study.held[worker].suggest_float("x", 0, 1)
        elif rng.random() < 0.3:
            study.workers[worker].release(study.id, "stopped", 1.0)
            del study.held[worker]
        else:
            study.finish(worker, rng.choice(finished))
        truth = study.truth()
        view = rng.choice(["all", "finished", "sampling", "none"])
        if view == "all":
            assert study.viewer.get_all_trials(study.id) == truth
        elif view == "finished":
            seen = study.viewer.get_all_trials(study.id, states=finished)
            assert seen == [t for t in truth if t.state in finished]
        elif view == "sampling":
            seen = study.viewer.trials_for_sampling(study.id)
            expected = [t for t in truth if t.state.is_finished() or t.params]
            assert [(t.number, t.params) for t in seen] == [(t.number, t.params) for t in expected]


def test_looking_at_finished_trials_again_is_one_statement(url: str) -> None:
    study = Study(url, workers=2)
    for _ in range(5):
        study.claim(0)
        study.finish(0, TrialState.COMPLETE)
    study.claim(1)
    assert len(study.viewer.get_all_trials(study.id, states=(TrialState.COMPLETE,))) == 5
    looks: list[int] = []
    sa.event.listen(study.viewer.engine, "before_cursor_execute", lambda *_: looks.append(1))
    for _ in range(3):
        assert len(study.viewer.get_all_trials(study.id, states=(TrialState.COMPLETE,))) == 5
    assert len(looks) == 3
    study.finish(1, TrialState.COMPLETE)
    assert len(study.viewer.get_all_trials(study.id, states=(TrialState.COMPLETE,))) == 6


def test_the_list_that_is_given_out_is_the_callers_own(url: str) -> None:
    study = Study(url, workers=1)
    study.claim(0)
    study.finish(0, TrialState.COMPLETE)
    study.viewer.get_all_trials(study.id, False, (TrialState.COMPLETE,)).clear()
    assert len(study.viewer.get_all_trials(study.id, False, (TrialState.COMPLETE,))) == 1
