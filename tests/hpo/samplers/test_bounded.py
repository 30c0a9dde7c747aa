"""Samplers see enough of a long study, quickly, and no two workers' see the same dice."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.samplers.bounded import BoundedSampler, History
from hpo.samplers.registry import Sampler, make_sampler
from hpo.trial.ranking import FAILED


def trial(number: int, value: float, state: TrialState, failed: bool) -> FrozenTrial:
    done = state.is_finished() and state != TrialState.FAIL
    made = create_trial(
        state=state,
        value=value if done else None,
        system_attrs={f"constraints:{FAILED}": 1.0} if failed else {},
    )
    made.number = number
    return made


_TRIALS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]),
        st.booleans(),
    ),
    max_size=120,
)


@settings(max_examples=60)
@given(drawn=_TRIALS, size=st.integers(8, 60), n_running=st.integers(0, 3))
def test_a_history_is_bounded_and_holds_the_best_and_all_that_run(
    drawn: list[tuple[float, TrialState, bool]], size: int, n_running: int
) -> None:
    trials = [trial(i, *facts) for i, facts in enumerate(drawn)]
    trials += [trial(len(drawn) + i, 0.0, TrialState.RUNNING, False) for i in range(n_running)]
    part = History(size, seed=1).part_of(trials)
    assert [t.number for t in part] == sorted({t.number for t in part})
    useful = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if len(useful) <= size:
        assert [t.number for t in part] == [t.number for t in trials]
        return
    kept = {t.number for t in part}
    assert len(part) == size + n_running
    assert {t.number for t in trials if t.state == TrialState.RUNNING} <= kept
    good = [t for t in useful if not any(t.constraints.values())]
    best = sorted(good, key=lambda t: (t.value, t.number))[: round(size / 4)]
    assert {t.number for t in best} <= kept


@settings(max_examples=30)
@given(drawn=_TRIALS)
def test_estimates_of_pruned_trials_are_shown_as_losses(
    drawn: list[tuple[float, TrialState, bool]],
) -> None:
    trials = [trial(i, *facts) for i, facts in enumerate(drawn)]
    for before, shown in zip(trials, History(200, seed=1).part_of(trials), strict=True):
        estimated = before.state == TrialState.PRUNED and not any(before.constraints.values())
        assert shown.state == (TrialState.COMPLETE if estimated else before.state)
        assert (shown.values, shown.number) == (before.values, before.number)
    assert [t.state for t in trials] == [state for _, state, _ in drawn], "left as they were"


def test_a_history_that_grows_stays_as_it_would_be_made_anew() -> None:
    rng = np.random.default_rng(0)
    trials = [trial(i, rng.random(), TrialState.COMPLETE, False) for i in range(300)]
    grown = History(60, seed=2)
    for n in (10, 60, 61, 200, 300):
        assert grown.part_of(trials[:n]) == History(60, seed=2).part_of(trials[:n])


def test_successive_samples_of_the_others_overlap() -> None:
    rng = np.random.default_rng(0)
    trials = [trial(i, rng.random(), TrialState.COMPLETE, False) for i in range(400)]
    before = {t.number for t in History(80, seed=0).part_of(trials[:390])}
    after = {t.number for t in History(80, seed=0).part_of(trials)}
    assert len(before & after) > 60


@pytest.mark.parametrize("name", ["tpe", "gp", "random"])
def test_samplers_find_a_minimum_or_at_least_sample_it(name: str) -> None:
    sampler = make_sampler(Sampler(name=name, startup_trials=8, history=50), seed=3)  # type: ignore[arg-type]
    study = optuna.create_study(sampler=sampler)
    n = 25 if name == "gp" else 90
    study.optimize(lambda t: (t.suggest_float("x", -1, 1) - 0.3) ** 2, n_trials=n)
    assert abs(study.best_params["x"] - 0.3) < 0.1
    late = [abs(t.params["x"] - 0.3) for t in study.trials[n // 2 :]]
    if name != "random":
        assert np.median(late) < 0.35  # of dice: 0.5


def test_equal_seeds_sample_alike_and_others_do_not() -> None:
    def first(seed: int) -> float:
        study = optuna.create_study(sampler=make_sampler(Sampler(), seed))
        return study.ask().suggest_float("x", 0, 1)

    assert first(1) == first(1) != first(2)


def test_a_bounded_sampler_asks_the_storage_once_a_trial() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        tpe = optuna.samplers.TPESampler(multivariate=True, group=True, n_startup_trials=2)
    study = optuna.create_study(sampler=BoundedSampler(tpe, 50, seed=0))
    asked = []
    read = study._storage.get_all_trials

    def count(*args: object, **kwargs: object) -> list[FrozenTrial]:
        asked.append(args)
        return read(*args, **kwargs)  # type: ignore[arg-type]

    def objective(t: optuna.Trial) -> float:
        asked.clear()
        lora = t.suggest_categorical("lora", [True, False])
        rank = t.suggest_int("rank", 1, 8) if lora else 0
        value = t.suggest_float("x", 0, 1) + rank
        assert len(asked) <= 1
        return value

    study._storage.get_all_trials = count  # type: ignore[method-assign]
    study.optimize(objective, n_trials=12)


def looked(number: int, losses: list[float], n_looks: int, recipe: str) -> FrozenTrial:
    """A trial with looks at a lower speed, and an old prediction; complete with four instances."""
    complete = len(losses) == 4
    means = np.cumsum(losses) / np.arange(1, len(losses) + 1)
    made = create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        value=float(np.mean(losses[n_looks:])) if complete else 9.0,
        intermediate_values={i + 1: float(m) for i, m in enumerate(means)},
        user_attrs={"looks": n_looks, "recipe": recipe},
    )
    made.number = number
    return made


def test_looks_are_shown_with_what_they_predict_now_and_a_promoted_recipe_once() -> None:
    history = History(50, seed=0)
    waiting = [looked(0, [0.20, 0.22], 2, "a"), looked(1, [0.30, 0.33], 2, "b")]
    first = history.part_of(waiting)
    assert [t.value for t in first] == pytest.approx([0.21, 0.315], rel=0.01)
    # Full speed is a tenth better; the recipe that was promoted is shown with its own loss alone.
    trials = [*waiting, looked(2, [0.20, 0.22, 0.18, 0.198], 2, "a")]
    later = history.part_of(trials)
    assert [t.number for t in later] == [1, 2]
    assert [t.value for t in later] == pytest.approx([0.9 * 0.315, 0.189], rel=0.01)
    assert all(t.state == TrialState.COMPLETE for t in later)
    assert [t.value for t in waiting] == [9.0, 9.0], "what is stored is left alone"
