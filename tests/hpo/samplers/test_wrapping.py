"""What a person has changed of a finished trial reaches samplers that keep trials."""

from __future__ import annotations

import optuna

from hpo.samplers.bounded import BoundedSampler
from hpo.samplers.prior import PriorSampler


def test_a_trial_that_was_dropped_is_forgotten() -> None:
    seen: list[list[int]] = []

    class Spy(optuna.samplers.RandomSampler):
        def infer_relative_search_space(self, study, trial):  # type: ignore[no-untyped-def]
            trials = study.get_trials(deepcopy=False)
            seen.append([t.number for t in trials if t.state.is_finished()])
            return super().infer_relative_search_space(study, trial)

    sampler = PriorSampler(BoundedSampler(Spy(seed=0), 4, 0), {}, trials=1, seed=3)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=20)
    best = study.best_trial.number
    kept = [t for t in study.get_trials() if t.number != best]

    def asked() -> list[int]:
        seen.clear()
        while not seen:  # some trials are the prior's
            study._thread_local.cached_all_trials = kept
            sampler.infer_relative_search_space(study, kept[-1])
        return seen[-1]

    assert best in asked()  # of a long study it keeps the best
    sampler.forget()
    assert best not in asked()
