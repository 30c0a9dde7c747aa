"""How probable it is that the best loss still falls."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.pruners.improvement import LEAST_TRIALS, Outlook, chance_of_fall, outlook, since_progress
from hpo.study.budget import why_stop
from hpo.study.config import Budget

K = 4
START = datetime(2026, 1, 1)


def test_it_happens_as_often_as_it_is_said() -> None:
    """For losses whose logarithms are normal. An end below which none lies makes it rarer."""
    rng = np.random.default_rng(0)
    said, happened = [], []
    for _ in range(2000):
        n, ahead = int(rng.integers(15, 80)), int(rng.integers(5, 40))
        losses = 0.1 * np.exp(0.05 * rng.standard_normal(n + ahead))
        share = float(rng.choice([0.005, 0.01, 0.03]))
        said.append(chance_of_fall(losses[:n].tolist(), ahead, share))
        happened.append(losses[n:].min() < (1 - share) * losses[:n].min())
    said_of, did = np.array(said), np.array(happened)
    for low, high in pairwise([0.02, 0.1, 0.2, 0.4]):
        chosen = (said_of >= low) & (said_of < high)
        assert chosen.sum() > 100
        assert did[chosen].mean() == pytest.approx(said_of[chosen].mean(), abs=0.12)


@given(
    losses=st.lists(st.floats(0.05, 1), min_size=2, max_size=40, unique=True),
    n=st.floats(0.1, 1000),
    share=st.floats(0.001, 0.3),
    noise=st.floats(0, 0.99),
)
def test_more_trials_and_less_to_fall_make_it_likelier(
    losses: list[float], n: float, share: float, noise: float
) -> None:
    chance = chance_of_fall(losses, n, share, noise)
    assert 0 <= chance <= 1
    assert chance <= chance_of_fall(losses, 2 * n, share, noise) + 1e-12
    assert chance <= chance_of_fall(losses, n, share / 2, noise) + 1e-12
    assert chance <= chance_of_fall(losses, n, share, 0.0) + 1e-12
    assert chance == pytest.approx(chance_of_fall([9 * x for x in losses], n, share, noise))


def trials(losses: np.ndarray, seconds: float = 360.0) -> list[FrozenTrial]:
    """Complete ones, as long each."""
    made = []
    for number, row in enumerate(losses):
        means = np.cumsum(row) / np.arange(1, len(row) + 1)
        trial = create_trial(
            state=TrialState.COMPLETE,
            value=float(means[-1]),
            intermediate_values={i + 1: float(m) for i, m in enumerate(means)},
        )
        trial.number = number
        trial.datetime_start = START + timedelta(seconds=seconds * number)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
        made.append(trial)
    return made


def table(n: int, noise: float = 0.005) -> np.ndarray:
    rng = np.random.default_rng(1)
    means = np.log(0.1) + 0.05 * rng.exponential(size=n)
    return np.exp(means[:, None] + noise * rng.standard_normal((n, K)))


def test_an_hour_makes_as_many_trials_as_it_did() -> None:
    found, slower = outlook(trials(table(40))), outlook(trials(table(40), 720.0))
    assert isinstance(found, Outlook) and isinstance(slower, Outlook)
    assert (found.trials, slower.trials) == (10, 5)
    assert 0 < slower.chance < found.chance < 1
    words = (
        f"the best loss falls by 1 % within an hour of compute with probability {found.chance:.2g}"
    )
    assert str(found) == words


def test_what_noise_found_does_not_last() -> None:
    clean, noisy = outlook(trials(table(40, 0.0))), outlook(trials(table(40, 0.05)))
    assert isinstance(clean, Outlook) and isinstance(noisy, Outlook)
    losses = [float(t.values[0]) for t in trials(table(40, 0.05))]
    assert noisy.chance < chance_of_fall(losses, 10, 0.01)


def test_earlier_trials_do_not_count_while_the_search_makes_progress() -> None:
    rng = np.random.default_rng(2)
    level = rng.standard_normal(400).tolist()
    assert len(since_progress(level)) == 400
    assert since_progress([1.0] * 100) == [1.0] * 100
    falling = [9.0 - number / 10 for number in range(80)]
    assert since_progress(falling) == falling[60:]  # twelve are the least
    once = [*np.add(level[:60], 9.0), *level[60:120]]
    assert since_progress(once) == once[60:]


def test_few_trials_say_nothing() -> None:
    few = outlook(trials(table(LEAST_TRIALS - 1)))
    assert few == "12 trials with a loss are the least, and 11 have one"
    assert outlook(trials(table(20), 0.0)) == "the trials took no time"
    bad = [t for t in trials(table(20)) if not setattr(t, "state", TrialState.PRUNED)]
    assert outlook(bad) == "no trial is complete"


def test_a_budget_stops_on_it() -> None:
    found = outlook(trials(table(40)), 0.05)
    assert isinstance(found, Outlook)
    for chance, stops in ((found.chance * 1.01, True), (found.chance * 0.99, False)):
        budget = Budget.model_validate({"improvement": {"chance": chance, "share": 0.05}})
        said = why_stop(budget, 0.0, lambda: trials(table(40)))
        assert (said is not None) == stops
        assert budget.parts == {"improvement": chance}
        if said is not None:
            assert str(said) == f"{found}; the study goes on from {chance:.2g}"
    assert math.isclose(found.hours, 1.0)
