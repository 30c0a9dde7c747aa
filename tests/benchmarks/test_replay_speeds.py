"""Replays on two speeds: looks cost little, and what is complete is judged at the target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import IntDistribution

from benchmarks.replay_speeds import (
    Search,
    cost_to,
    of_speeds,
    policies,
    print_policies,
    with_looks,
)
from benchmarks.replay_table import read_table, write_table
from finetune.errors import UserError

from .test_replay import K, table

COST = 0.1


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_looks_have_the_correlation_that_is_asked_for_and_leave_the_target() -> None:
    t = table(4000)
    losses, n_looks = with_looks(t, 0.7, seed=0)
    assert n_looks == K and np.array_equal(losses[:, K:], t.losses)
    looks, target = np.log(losses[:, :K]).mean(1), np.log(t.losses).mean(1)
    good = target <= np.median(target)
    assert np.corrcoef(looks[good], target[good])[0, 1] == pytest.approx(0.7, abs=0.04)


@pytest.mark.parametrize("name", policies(K, 2 * K, COST))
def test_each_policy_pays_for_its_calls_once(name: str) -> None:
    t = table(82, noise=0.03)
    losses, n_looks = with_looks(t, 0.9, seed=1)
    search = Search(t, losses, n_looks, COST, policies(K, 2 * K, COST)[name], seed=1)
    search.run(60.0)
    made = search._made.values()
    looks, target = (sum(min(n, K) for n in made), sum(max(n - K, 0) for n in made))
    assert search.spent == pytest.approx(COST * looks + target)
    assert search.complete and target < K * len(made), "not all go on"
    at, row = search.complete[0]
    assert cost_to(search, t.quality, t.quality[row]) == at


def test_a_table_of_two_speeds_is_used_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    t = table(12)
    labels = [f"r{k}/0*{speed}" for speed in ("0.1", "1") for k in range(K)]
    both, _ = with_looks(t, 0.9, seed=2)
    doubled = np.concatenate([t.curves, t.curves], axis=1)
    seconds = np.concatenate([t.seconds, t.seconds], axis=1)
    two = replace(t, instances=labels, losses=both, seconds=seconds, curves=doubled)
    assert of_speeds(two) == K
    with pytest.raises(UserError, match="no looks at a lower speed"):
        of_speeds(t)
    found = print_policies(two, None, COST, 2, ["half"])
    assert capsys.readouterr().out.count("\n") == 2
    (searches,) = found.values()
    assert all(search.n_looks == K for search in searches)


def test_a_recipe_without_a_parameter_survives_the_file(tmp_path: Path) -> None:
    t = table(6)
    rank = {"rank": IntDistribution(1, 64, log=True)}
    params = [p | ({"rank": 8} if i % 2 else {}) for i, p in enumerate(t.params)]
    some = replace(t, params=params, distributions=t.distributions | rank)
    write_table(some, tmp_path / "some.csv.gz")
    again = read_table(tmp_path / "some.csv.gz")
    assert again.params == params and again.distributions == some.distributions
    assert set(again.distributions_of(1)) - set(again.distributions_of(0)) == {"rank"}
    without, low, high = (some.coordinates({**t.params[0], **rank}) for rank in RANKS)
    assert without[-1] == 0.5 and (low[-1], high[-1]) == (0.0, 1.0)


RANKS = ({}, {"rank": 1}, {"rank": 64})
