"""Racing: its levels are what they say, by closed forms and by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy import special, stats

from hpo.pruners.racing import Race, RacingPruner
from hpo.pruners.statistics import Standings, nominal_level, variance_prior
from hpo.trial.ranking import OVER_LIMIT

K = 8


def table(
    n: int, rng: np.random.Generator, spread: float, noise: float, tails: float = math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Losses (n, K) of recipes with true log quality, and that quality (n,)."""
    quality = spread * rng.standard_normal(n)
    difficulty = np.log(0.1) + 0.3 * rng.standard_normal(K)
    residual = rng.standard_normal((n, K)) if math.isinf(tails) else rng.standard_t(tails, (n, K))
    return np.exp(quality[:, None] + difficulty + noise * residual), quality


@pytest.mark.parametrize(
    ("alpha", "looks", "boundary"),
    # Jennison and Turnbull, "Group sequential methods" (2000), table 2.1: two-sided levels of
    # 0.01, 0.05 and 0.1, whose halves are one-sided ones up to crossing both ways.
    [(0.025, 2, 2.178), (0.025, 5, 2.413), (0.025, 10, 2.555), (0.005, 5, 2.986), (0.05, 4, 2.067)],
)
def test_nominal_levels_are_pococks(alpha: float, looks: int, boundary: float) -> None:
    assert stats.norm.isf(nominal_level(alpha, looks)) == pytest.approx(boundary, abs=0.002)


@settings(max_examples=5)
@given(alpha=st.floats(0.01, 0.4), looks=st.integers(1, 12))
def test_looks_share_the_level(alpha: float, looks: int) -> None:
    level = nominal_level(alpha, looks)
    assert alpha / looks - 1e-6 <= level <= alpha + 1e-6


def test_prior_is_found_again() -> None:
    rng = np.random.default_rng(0)
    scale, dof = 0.02**2, 6.0
    variances = scale * dof / rng.chisquare(dof, 4000)
    samples = variances * rng.chisquare(7, 4000) / 7
    prior = variance_prior(samples, 7)
    assert prior.scale == pytest.approx(scale, rel=0.1)
    assert prior.dof == pytest.approx(dof, rel=0.25)


def test_equal_variances_give_a_prior_without_doubt() -> None:
    rng = np.random.default_rng(1)
    prior = variance_prior(4.0 * rng.chisquare(7, 50) / 7 * 0 + 4.0, 7)
    assert math.isinf(prior.dof)
    # The mean of log chi-squared is below the log of its mean; that is taken into account.
    assert prior.scale == pytest.approx(4.0 / math.exp(special.digamma(3.5) - math.log(3.5)))


def test_two_variances_say_nothing() -> None:
    assert variance_prior(np.array([1.0, 2.0]), 7).dof == 0


def test_one_earlier_trial_is_a_plain_paired_t_test() -> None:
    rng = np.random.default_rng(2)
    incumbent = np.exp(0.1 * rng.standard_normal(K))
    losses = incumbent[:4] * np.exp(0.02 + 0.01 * rng.standard_normal(4))
    verdict = Standings(incumbent[None]).judge(losses.tolist(), 0.1)
    test = stats.ttest_rel(np.log(losses), np.log(incumbent[:4]), alternative="greater")
    assert verdict.p_value == pytest.approx(test.pvalue)
    assert verdict.ratio == pytest.approx(np.exp(np.log(losses / incumbent[:4]).mean()))


def test_nothing_is_dropped_on_one_instance_without_experience() -> None:
    assert not Standings(np.full((1, K), 0.1)).judge([100.0], 0.4).drop
    assert not Standings(np.full((1, K), 0.1)).judge([0.1, 0.1], 0.4).drop  # no variance at all


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("tails", [math.inf, 5.0])
@pytest.mark.parametrize(("n", "spread"), [(2, 0.02), (4, 0.02), (30, 0.02), (30, 0.0), (12, 0.1)])
def test_an_equal_of_the_incumbent_is_dropped_no_more_often_than_stated(
    alpha: float, tails: float, n: int, spread: float
) -> None:
    """The incumbent is the best of ``n`` by its losses, so it was lucky; the equal was not."""
    rng = np.random.default_rng([round(100 * alpha), round(100 * spread), n, math.isinf(tails)])
    runs, dropped = 400, 0
    for _ in range(runs):
        losses, quality = table(n + 1, rng, spread, 0.02, tails)
        earlier = losses[:n]
        best = int(earlier.mean(1).argmin())
        equal = losses[n] * np.exp(quality[best] - quality[n])
        standings = Standings(earlier)
        dropped += any(standings.judge(equal[:k].tolist(), alpha).drop for k in range(1, K))
    assert stats.binomtest(dropped, runs, alpha, alternative="greater").pvalue > 1e-3


def test_a_worse_recipe_is_dropped_soon() -> None:
    rng = np.random.default_rng(3)
    looks = []
    for _ in range(200):
        losses, quality = table(21, rng, 0.03, 0.015)
        best = quality[:20].min()
        worse = losses[20] * np.exp(best + 0.1 - quality[20])
        standings = Standings(losses[:20])
        drops = [standings.judge(worse[:k].tolist(), 0.1).drop for k in range(1, K)]
        looks.append(drops.index(True) + 1 if any(drops) else K)
    assert np.mean(looks) < 2


def test_the_incumbents_luck_with_one_instance_is_not_held_against_others() -> None:
    """Its mean and the instance's difficulty are compared with, and have less noise than it has."""
    noise, ahead, alpha, runs = 0.02, 0.05, 0.1, 400
    rng = np.random.default_rng(7)
    dropped = paired = 0
    level = nominal_level(alpha, K - 1)
    for _ in range(runs):
        losses, quality = table(21, rng, 0.03, noise)
        best = int(losses[:20].mean(1).argmin())
        worse = losses[20] * np.exp(quality[best] + ahead - quality[20])
        dropped += Standings(losses[:20]).judge(worse[:1].tolist(), alpha).drop
        z = np.log(worse[0] / losses[best, 0]) / (noise * math.sqrt(2))
        paired += stats.norm.sf(z) < level
    # With k = 1, n = 20 the error is noise * sqrt(1 + 1/8 + 7/160), and luck is a little less.
    z = ahead / (noise * math.sqrt(1 + 1 / K + (1 - 1 / K) / 20)) - stats.norm.isf(level)
    assert dropped / runs == pytest.approx(stats.norm.cdf(z), abs=0.12)
    assert dropped > 1.2 * paired


def test_a_part_is_judged_by_how_hard_its_instances_were() -> None:
    rng = np.random.default_rng(4)
    losses, _ = table(30, rng, 0.05, 0.001)
    standings = Standings(losses[:29])
    for k in range(1, K + 1):
        assert standings.full_loss(losses[29, :k].tolist()) == pytest.approx(
            losses[29].mean(), rel=0.01
        )


@settings(max_examples=50)
@given(
    factor=st.floats(0.01, 100),
    k=st.integers(1, K),
    n=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_units_play_no_part(factor: float, k: int, n: int, seed: int) -> None:
    losses, _ = table(n + 1, np.random.default_rng(seed), 0.03, 0.02)
    a = Standings(losses[:n]).judge(losses[n, :k].tolist(), 0.1)
    b = Standings(factor * losses[:n]).judge((factor * losses[n, :k]).tolist(), 0.1)
    assert b.p_value == pytest.approx(a.p_value, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("bad", [[[0.1, -0.1]], [[0.1, math.nan]], [0.1, 0.2], [[]]])
def test_losses_that_are_none_are_refused(bad: list[object]) -> None:
    with pytest.raises(ValueError, match="positive numbers"):
        Standings(np.array(bad, dtype=float))


# The pruner


def finished(
    losses: np.ndarray, state: TrialState = TrialState.COMPLETE, **attrs: Any
) -> FrozenTrial:
    means = np.cumsum(losses) / np.arange(1, len(losses) + 1)
    return create_trial(
        state=state,
        value=float(means[-1]) if state.is_finished() else None,
        intermediate_values={i + 1: float(m) for i, m in enumerate(means)},
        **attrs,
    )


def test_the_pruner_reads_running_means() -> None:
    rng = np.random.default_rng(5)
    losses, _ = table(12, rng, 0.03, 0.01)
    study = optuna.create_study()
    study.add_trials([finished(row) for row in losses[:10]])
    pruner = RacingPruner(0.1)
    bad = losses[10] * 1.3
    assert pruner.prune(study, finished(bad[:2], TrialState.RUNNING))
    best = losses[:10][losses[:10].mean(1).argmin()]
    assert not pruner.prune(study, finished(best[:2] * 0.99, TrialState.RUNNING))
    verdict = pruner.verdict(study, finished(bad[:2], TrialState.RUNNING))
    expected = Standings(losses[:10]).judge(bad[:2].tolist(), 0.1)
    assert verdict is not None and verdict.ratio == pytest.approx(expected.ratio)
    assert verdict.p_value == pytest.approx(expected.p_value, rel=1e-3)
    study.add_trial(finished(bad * 0.5))  # a new incumbent counts at once
    assert pruner.prune(study, finished(best[:2], TrialState.RUNNING))


def test_the_pruner_waits_for_a_complete_trial_and_never_drops_a_whole_one() -> None:
    rng = np.random.default_rng(6)
    losses, _ = table(10, rng, 0.03, 0.01)
    study = optuna.create_study()
    pruner = RacingPruner(0.4)
    assert not pruner.prune(study, finished(losses[0, :3], TrialState.RUNNING))
    study.add_trial(finished(losses[0, :2], TrialState.PRUNED))
    assert not pruner.prune(study, finished(9 * losses[0, :3], TrialState.RUNNING))
    study.add_trials([finished(row) for row in losses])
    assert not pruner.prune(study, finished(9 * losses[0], TrialState.RUNNING))


def test_reports_with_gaps_and_infeasible_trials_do_not_count() -> None:
    study = optuna.create_study()
    infeasible = finished(np.full(K, 0.01), system_attrs={f"constraints:{OVER_LIMIT}": 1.0})
    race = Race()
    gap = create_trial(value=1.0, intermediate_values={1: 0.1, 3: 0.1})
    assert race.losses(gap) is None
    assert Race(running_means=False).losses(finished(np.full(3, 0.2))) == pytest.approx([0.2] * 3)
    study.add_trials([gap, infeasible])
    assert race.standings(study) is None


def test_a_study_that_maximises_is_refused() -> None:
    with pytest.raises(ValueError, match="must minimise"):
        RacingPruner().prune(
            optuna.create_study(direction="maximize"),
            finished(np.full(2, 0.1), TrialState.RUNNING),
        )
    with pytest.raises(ValueError, match="between 0 and 1"):
        RacingPruner(alpha=1.0)
