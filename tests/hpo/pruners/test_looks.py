"""Looks at a lower speed: what they predict, and how often an equal of the incumbent is dropped."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hpo.pruners.looks import LookStandings, fit_line

L = T = 6
NOISE = 0.015  # of a loss around its recipe's mean, in log loss
SPREAD = 0.06  # of recipes in looks


class World:
    """Recipes whose mean log loss at the target is a line of that in looks, and a deviation."""

    def __init__(self, seed: int, deviation: float, slope: float = 1.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.deviation, self.slope = deviation, slope
        self.hard = np.log(0.1) + 0.3 * self.rng.standard_normal(L)

    def losses(self, look: float, target: float) -> list[float]:
        noise = NOISE * self.rng.standard_normal(L + T)
        means = np.concatenate([0.15 + look + self.hard, target + self.hard])
        return [float(x) for x in np.exp(means + noise)]

    def recipe(self) -> tuple[float, float]:
        look = SPREAD * self.rng.standard_normal()
        return look, self.slope * look + self.deviation * self.rng.standard_normal()

    def equal(self, target: float) -> float:
        """A look of a recipe that is worth ``target``, drawn as recipes are."""
        own, prior = self.deviation**2, SPREAD**2
        whole = self.slope**2 * prior + own
        mean = self.slope * prior / whole * target
        return float(mean + math.sqrt(prior * own / whole) * self.rng.standard_normal())

    def searched(self, n: int, complete: int) -> tuple[LookStandings, float]:
        """Standings of ``n`` recipes, of which those of the best looks are complete.

        Returns:
            And what the incumbent is truly worth.
        """
        found = [self.recipe() for _ in range(n)]
        rows = [self.losses(*recipe) for recipe in found]
        order = np.argsort([np.log(row[:L]).mean() for row in rows])
        whole = [rows[i] for i in order[:complete]]
        best = order[int(np.argmin([np.mean(row[L:]) for row in whole]))]
        # Most leave after a few looks, and some wait.
        partial = [rows[i][: 2 if i % 2 else L] for i in order[complete:]]
        return LookStandings(whole, partial, L), found[best][1]


@pytest.mark.parametrize("alpha", [0.1, 0.4])
@pytest.mark.parametrize("complete", [1, 4, 12])
@pytest.mark.parametrize(("deviation", "slope"), [(0.0, 1.0), (0.02, 1.0), (0.05, 0.7)])
def test_an_equal_at_the_target_is_dropped_no_more_often_than_stated(
    alpha: float, complete: int, deviation: float, slope: float
) -> None:
    world = World(round(1000 * (alpha + deviation)) + complete, deviation, slope)
    runs, dropped = 100, 0
    for _ in range(runs):
        standings, target = world.searched(40, complete)
        losses = world.losses(world.equal(target), target)
        dropped += any(standings.judge(losses[:k], alpha).drop for k in range(1, L + T))
    assert stats.binomtest(dropped, runs, alpha, alternative="greater").pvalue > 1e-3


def test_a_worse_recipe_is_dropped_in_its_looks_or_soon_after() -> None:
    world = World(3, 0.01)
    calls = []
    for _ in range(60):
        standings, target = world.searched(40, 6)
        losses = world.losses(target + 0.1, target + 0.1)
        drops = [standings.judge(losses[:k], 0.4).drop for k in range(1, L + T)]
        calls.append(drops.index(True) + 1 if any(drops) else L + T)
    assert np.mean(calls) < 3


def test_what_is_better_at_the_target_than_its_looks_say_is_kept() -> None:
    """Its mean over both speeds is worse than the incumbent's, its mean at the target is not."""
    world = World(4, 0.04)
    kept = 0
    for _ in range(60):
        standings, target = world.searched(40, 8)
        losses = world.losses(target + 0.05, target - 0.03)
        kept += not any(standings.judge(losses[:k], 0.1).drop for k in range(1, L + T))
    assert kept > 45


def test_predictions_are_those_of_the_line_and_then_of_the_calls_themselves() -> None:
    world = World(5, 0.01, slope=0.8)
    standings, _ = world.searched(60, 30)
    errors: dict[int, list[float]] = {k: [] for k in (L, L + 2, L + T)}
    for _ in range(100):
        losses = world.losses(*world.recipe())
        for k, found in errors.items():
            found.append(math.log(standings.full_loss(losses[:k]) / np.mean(losses[L:])))
    off = {k: float(np.std(found)) for k, found in errors.items()}
    assert 0.01 < off[L] < 0.02 and off[L + 2] < off[L] and off[L + T] < 0.002
    assert abs(np.mean(errors[L])) < 0.01


def test_without_a_complete_trial_looks_are_compared_with_the_best_looks() -> None:
    world = World(6, 0.02)
    rows = [world.losses(*world.recipe()) for _ in range(20)]
    standings = LookStandings([], [row[:L] for row in rows], L)
    best = min(rows, key=lambda row: np.log(row[:L]).mean())
    assert standings.target is None
    assert not standings.judge(best[:L], 0.4).drop
    assert standings.judge([1.5 * loss for loss in best[:1]], 0.4).drop
    assert standings.full_loss(best[:L]) == pytest.approx(np.mean(best[:L]), rel=0.01)
    # A few percent are what the speeds may differ by.
    assert not standings.judge([1.02 * loss for loss in best[:L]], 0.4).drop


def test_a_line_of_few_trials_is_shrunk_and_one_of_many_is_its_own() -> None:
    rng = np.random.default_rng(0)
    looks = np.exp(0.1 * rng.standard_normal((200, 1)))
    targets = 0.9 * looks**0.7 * np.exp(0.005 * rng.standard_normal((200, 1)))
    one, many = fit_line(looks[:1], targets[:1]), fit_line(looks, targets)
    assert one.slope == 1 and one.variance == pytest.approx(0.05**2)
    assert many.slope == pytest.approx(0.7, abs=0.02)
    assert 0.005 < math.sqrt(many.variance) < 0.01
    assert one.at(math.log(looks[0, 0])) == pytest.approx(math.log(targets[0, 0]))


def test_a_promoted_recipe_counts_once() -> None:
    world = World(7, 0.02)
    rows = [world.losses(*world.recipe()) for _ in range(12)]
    partial = [row[:L] for row in rows[3:]]
    once = LookStandings(rows[:3], partial, L)
    twice = LookStandings(rows[:3], [*(row[:L] for row in rows[:3]), *partial], L)
    assert once.looks.n_trials == twice.looks.n_trials == 12
    assert once.line == twice.line
