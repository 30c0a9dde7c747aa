"""Importances: they find what matters, with an honest error, and say so when they can't."""

from __future__ import annotations

import math
import time

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.analysis.importance import NEEDED, ImportanceError, importances

UNIT = FloatDistribution(0.0, 1.0)
SWITCH = CategoricalDistribution([False, True])
RANK = IntDistribution(2, 32, log=True)


def drawn(n: int, seed: int = 0, noise: int = 3) -> list[FrozenTrial]:
    """Random trials: ``x`` matters, ``noise`` others do not; ``rank`` is there if ``lora``."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(n):
        params: dict[str, object] = {"x": float(rng.uniform()), "lora": bool(rng.integers(2))}
        spaces: dict[str, BaseDistribution] = {"x": UNIT, "lora": SWITCH}
        for i in range(noise):
            params[f"n{i}"], spaces[f"n{i}"] = float(rng.uniform()), UNIT
        if params["lora"]:
            params["rank"], spaces["rank"] = int(rng.integers(2, 33)), RANK
        loss = abs(params["x"] - 0.3) + 0.01 * float(rng.normal())  # type: ignore[operator]
        trials.append(trial_of(number, loss, params, spaces))
    return trials


def trial_of(
    number: int,
    loss: float,
    params: dict[str, object],
    spaces: dict[str, BaseDistribution],
    state: TrialState = TrialState.COMPLETE,
) -> FrozenTrial:
    trial = create_trial(value=loss, params=params, distributions=spaces, state=state)
    trial.number = trial._trial_id = number
    return trial


def test_the_one_parameter_that_matters_is_found() -> None:
    found = importances(drawn(100))
    assert {i.name for i in found} == {"x", "lora", "rank", "n0", "n1", "n2"}
    assert sum(i.share for i in found) == pytest.approx(1.0)
    first, second = found[:2]
    assert first.name == "x"
    assert first.share - second.share > 3 * math.hypot(first.standard_error, second.standard_error)


def test_a_parameter_of_some_trials_is_judged_by_those() -> None:
    rng = np.random.default_rng(1)
    trials = []
    for number in range(100):
        lora = bool(rng.integers(2))
        params: dict[str, object] = {"lora": lora}
        spaces: dict[str, BaseDistribution] = {"lora": SWITCH}
        loss = 0.5
        if lora:
            params["rank"], spaces["rank"] = int(rng.integers(2, 33)), RANK
            loss = abs(math.log(params["rank"] / 8))  # type: ignore[operator]
        trials.append(trial_of(number, loss, params, spaces))
    shares = {i.name: i.share for i in importances(trials)}
    assert shares["rank"] > shares["lora"] > 0


def test_the_error_is_about_that_of_other_trials() -> None:
    repeats = [{i.name: i for i in importances(drawn(40, seed))}["x"] for seed in range(12)]
    actual = np.std([i.share for i in repeats], ddof=1)
    told = np.mean([i.standard_error for i in repeats])
    assert actual / 2 < told < 3 * actual


def test_the_same_trials_give_the_same_figures_and_are_left_alone() -> None:
    trials = drawn(30)
    before = [repr(t) for t in trials]
    assert importances(trials) == importances(trials)
    assert [repr(t) for t in trials] == before


def test_only_complete_trials_with_a_finite_loss_count() -> None:
    trials = drawn(NEEDED - 1)
    trials.append(trial_of(50, math.inf, {"x": 0.5}, {"x": UNIT}))
    trials.append(trial_of(51, 0.1, {"x": 0.5}, {"x": UNIT}, TrialState.PRUNED))
    with pytest.raises(ImportanceError, match=rf"^1 more complete trials are needed, of {NEEDED}$"):
        importances(trials)


def test_where_nothing_can_be_told_it_says_why() -> None:
    same = [trial_of(i, 0.1, {"x": i / 30}, {"x": UNIT}) for i in range(30)]
    with pytest.raises(ImportanceError, match="the same loss"):
        importances(same)
    fixed = FloatDistribution(1.0, 1.0)
    single = [trial_of(i, i / 30, {"x": 1.0}, {"x": fixed}) for i in range(30)]
    with pytest.raises(ImportanceError, match="no parameter varies"):
        importances(single)
    with pytest.raises(ImportanceError, match="no parameter varies"):
        importances([trial_of(i, i / 30, {}, {}) for i in range(30)])


def test_a_space_that_was_edited_midway_is_no_trouble() -> None:
    trials = drawn(40)
    for trial in trials[20:]:
        trial.distributions = {**trial.distributions, "x": FloatDistribution(0.0, 2.0)}
    assert {i.name for i in importances(trials)} >= {"x", "rank"}


def test_trials_that_optuna_cannot_judge_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> dict[str, float]:
        raise ValueError("no such luck")

    monkeypatch.setattr(optuna.importance.PedAnovaImportanceEvaluator, "evaluate", fail)
    with pytest.raises(ImportanceError, match="no such luck"):
        importances(drawn(30))


def test_the_time_does_not_grow_with_the_study() -> None:
    trials = drawn(1200, noise=5)
    started = time.process_time()
    importances(trials[:300])
    capped_s = time.process_time() - started
    started = time.process_time()
    importances(trials)
    assert time.process_time() - started < 2 * capped_s
