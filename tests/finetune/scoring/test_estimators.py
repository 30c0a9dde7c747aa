"""Both estimators against closed forms, and their standard errors against repetition.

The networks here are linear: v(x_t, t, c) = a x_t.  With A the mean square of the pixels,
the loss at t is A (1 + a (1-t))^2 + (1 - a t)^2; for a = 0 it is A + 1 at every t.
"""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune.scoring.estimators import (
    T_BINS,
    LossTable,
    NoiseTable,
    author_estimate,
    estimate,
    paired_difference,
)


class LinearModel(nn.Module):
    """Velocity ``a * x_t``, that remembers how it was called."""

    def __init__(self, a: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))
        self.frozen_norm = nn.BatchNorm2d(1)
        self.times: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        assert t.shape == (len(x_t), 1, 1, 1) and c.shape == (len(x_t),)
        self.times.append(t.flatten().clone())
        self.labels.append(c.clone())
        self.modes.add((self.training, torch.is_grad_enabled()))
        return self.a * x_t


class BrokenModel(LinearModel):
    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        raise RuntimeError("broken")


def flat_images(*levels: float) -> Tensor:
    """One image of each grey level, (n, 1, 28, 28)."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)


def loss_at(t: Tensor, a: float, mean_square: float) -> Tensor:
    return mean_square * (1 + a * (1 - t)) ** 2 + (1 - a * t) ** 2


def mean_loss(a: float, mean_square: float, *, t_low: float = 0.0, t_high: float = 1.0) -> float:
    """Over t uniform in [t_low, t_high): the midpoint rule, exact to 1e-8 here."""
    t = t_low + (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000 * (t_high - t_low)
    return loss_at(t, a, mean_square).mean().item()


# The author's estimator


@pytest.mark.parametrize("a", [0.0, 1.0])
def test_author_estimate_agrees_with_the_closed_form(a: float) -> None:
    torch.manual_seed(0)
    result = author_estimate(LinearModel(a), flat_images(0.0, 1.0), 3, passes=500)
    times = torch.arange(1000, dtype=torch.float64) / 1000
    expected = loss_at(times, a, mean_square=0.5).mean().item()
    assert abs(result.mean - expected) < 4 * result.standard_error
    assert result.standard_error < 0.05 * expected


def test_author_times_are_thousandths_below_one_and_the_label_is_passed() -> None:
    torch.manual_seed(0)
    model = LinearModel()
    result = author_estimate(model, flat_images(0.0, 0.5, 1.0), 7, passes=1500)
    times = torch.cat(model.times)
    assert torch.equal(times, (times * 1000).round() / 1000)
    assert times.min() == 0 and times.max() < 1
    assert len(times.unique()) > 950, "one t for each image of each pass"
    assert torch.cat(model.labels).unique().tolist() == [7]
    assert result.n_evaluations == len(times) == 4500


def test_author_estimate_is_the_mean_over_batches_of_batch_means() -> None:
    torch.manual_seed(0)
    images = flat_images(0.0, 0.0, 10.0)  # losses 1, 1, 101 in batches of two and one
    result = author_estimate(LinearModel(), images, 0, passes=200, batch_size=2)
    assert abs(result.mean - 51) < 4 * result.standard_error
    assert result.standard_error < 0.1


def test_author_standard_error_is_the_spread_of_repeated_estimates() -> None:
    torch.manual_seed(0)
    images = flat_images(0.0, 0.0, 3.0)  # between images losses differ, which is no error
    runs = [author_estimate(LinearModel(), images, 0, passes=20) for _ in range(150)]
    spread = statistics.stdev(run.mean for run in runs)
    assert statistics.mean(run.standard_error for run in runs) == pytest.approx(spread, rel=0.35)


def test_author_standard_error_shrinks_with_the_root_of_the_passes() -> None:
    torch.manual_seed(0)
    few, many = (
        author_estimate(LinearModel(), flat_images(1.0), 0, passes=n).standard_error
        for n in (400, 3600)
    )
    assert few / many == pytest.approx(3, rel=0.2)


# The fixed table


@pytest.mark.parametrize("a", [0.0, 1.0])
def test_estimate_agrees_with_the_closed_form(a: float) -> None:
    result = estimate(LinearModel(a), flat_images(0.0, 1.0), 3)
    assert abs(result.mean - mean_loss(a, mean_square=0.5)) < 4 * result.standard_error
    assert result.standard_error < 0.01 * result.mean


def test_estimate_beats_the_author_at_the_same_cost() -> None:
    torch.manual_seed(0)
    model, images = LinearModel(1.0), flat_images(0.0, 1.0)
    ours = estimate(model, images, 0, NoiseTable(2, n_strata=25, n_replicates=16))
    authors = author_estimate(model, images, 0, passes=ours.n_evaluations // 2)
    assert ours.n_evaluations == authors.n_evaluations
    assert ours.standard_error < authors.standard_error / 3


def test_same_table_gives_the_same_figures() -> None:
    images = flat_images(0.0, 1.0)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(estimate(LinearModel(0.5), images, 0, NoiseTable(2, 10, 2, seed=5)))
    assert results[0] == results[1]
    assert estimate(LinearModel(0.5), images, 0, NoiseTable(2, 10, 2, seed=6)) != results[0]


def test_table_leaves_the_global_random_stream_alone() -> None:
    before = torch.get_rng_state()
    estimate(LinearModel(), flat_images(0.0), 0, NoiseTable(1, 10, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_estimate_hands_over_the_table_and_the_label() -> None:
    model, table = LinearModel(), NoiseTable(3, n_strata=10, n_replicates=2)
    result = estimate(model, flat_images(0.0, 0.5, 1.0), 10, table)
    expected = torch.cat([table.replicate(r)[0].flatten() for r in range(2)])
    assert torch.equal(torch.cat(model.times), expected)
    assert torch.cat(model.labels).unique().tolist() == [10]
    assert result.n_evaluations == 3 * 10 * 2


@given(
    n=st.integers(1, 3),
    n_strata=st.integers(1, 60),
    r=st.integers(0, 5),
    seed=st.integers(0, 999),
    equal=st.booleans(),
)
def test_each_replicate_has_one_time_in_every_stratum(
    n: int, n_strata: int, r: int, seed: int, equal: bool
) -> None:
    table = NoiseTable(n, n_strata, 6, seed, equal=equal)
    t, e = table.replicate(r)
    assert t.shape == (n, n_strata) and e.shape == (n, n_strata, 1, 28, 28)
    widths = table.widths
    assert widths.min() > 0 and widths.sum().item() == pytest.approx(1, abs=1e-12)
    within = (t.double() - (widths.cumsum(0) - widths)) / widths
    assert within.min() > -1e-4 and within.max() < 1 + 1e-4
    assert t.min() >= 0 and t.max() < 1


def test_strata_are_of_one_width_or_narrow_near_no_noise() -> None:
    assert NoiseTable(1, 25, equal=True).widths.tolist() == pytest.approx([1 / 25] * 25)
    widths = NoiseTable(1, 25).widths.tolist()
    assert widths == pytest.approx(sorted(widths))
    assert widths[0] == pytest.approx(0.1 / 25) and widths[-1] == pytest.approx(2.5 / 25)


class SeesNoNoise(LinearModel):
    """Answers 0 but from t = 0.02 on, where it is told the velocity: the loss is in one place."""

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return torch.where(t < 0.02, torch.zeros_like(x_t), x_t / t.clamp(min=0.02))


def test_strata_that_are_narrow_where_losses_change_lower_the_error() -> None:
    """Of black images: e is x_t / t, so the loss is e^2 below t = 0.02 and 0 above it."""
    images = flat_images(0.0, 0.0)
    losses = {
        equal: [
            estimate(SeesNoNoise(), images, 0, NoiseTable(2, 25, 4, seed, equal=equal))
            for seed in range(60)
        ]
        for equal in (True, False)
    }
    spreads = {equal: statistics.stdev(r.mean for r in found) for equal, found in losses.items()}
    assert spreads[False] < 0.7 * spreads[True]
    for equal, found in losses.items():
        mean, error = statistics.mean(r.mean for r in found), spreads[equal] / math.sqrt(60)
        assert abs(mean - 0.02) < 4 * error, "whatever the bins, the mean is over uniform t"


def test_times_of_the_table_stay_below_one_when_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 1 - 2**-24))
    for equal in (True, False):
        assert NoiseTable(1, n_strata=1000, equal=equal).replicate(0)[0].max() < 1


def test_replicates_and_seeds_differ_in_times_and_noise() -> None:
    parts = [NoiseTable(1, 10, seed=seed).replicate(r) for seed in (0, 1) for r in (0, 1)]
    for k in (0, 1):
        assert len({tuple(part[k].flatten().tolist()) for part in parts}) == 4


def test_every_evaluation_has_its_own_time_and_noise() -> None:
    t, e = NoiseTable(4, n_strata=10, equal=True).replicate(0)
    within = t * 10 - torch.arange(10)  # place in its stratum
    assert len(within.flatten().unique()) == 40
    assert len(e.flatten(0, 1).flatten(1).unique(dim=0)) == 40


def test_sets_of_images_share_errors_only_if_they_share_noise() -> None:
    """Correlation of two sets' replicate means, on tables of one name and of two."""
    first, second = flat_images(0.0, 1.0), flat_images(0.1, 0.9)

    def correlation(*names: str) -> float:
        tables = [NoiseTable(2, 10, 60, seed=1, name=name) for name in names]
        pairs = zip((first, second), tables, strict=True)
        means = [estimate(LinearModel(0.5), images, 3, table).replicates for images, table in pairs]
        return statistics.correlation(*means)

    assert correlation("thorn/0", "thorn/0") > 0.9
    assert abs(correlation("thorn/0", "ing/0")) < 0.4  # 3 standard deviations
    assert correlation("", "") > 0.9


def test_noise_of_the_table_is_standard_normal() -> None:
    e = NoiseTable(4, n_strata=50).replicate(0)[1].double()
    assert abs(e.mean().item()) < 4 / math.sqrt(e.numel())
    assert abs(e.var().item() - 1) < 4 * math.sqrt(2 / e.numel())


def test_standard_error_is_the_spread_over_tables() -> None:
    model, images = LinearModel(1.0), flat_images(0.0, 1.0)
    results = [estimate(model, images, 0, NoiseTable(2, 5, 8, seed)) for seed in range(200)]
    spread = statistics.stdev(r.mean for r in results)
    assert statistics.mean(r.standard_error for r in results) == pytest.approx(spread, rel=0.25)
    expected = mean_loss(1.0, mean_square=0.5)
    assert abs(statistics.mean(r.mean for r in results) - expected) < 4 * spread / math.sqrt(200)


def test_standard_error_is_that_of_the_replicates() -> None:
    table = NoiseTable(2, 10, 6)
    result = estimate(LinearModel(1.0), flat_images(0.0, 1.0), 0, table)
    parts = result.replicates
    assert statistics.mean(parts) == pytest.approx(result.mean, rel=1e-12)
    expected = statistics.stdev(parts) / math.sqrt(len(parts))
    assert result.standard_error == pytest.approx(expected, rel=1e-9)


def test_a_single_replicate_has_no_standard_error() -> None:
    result = estimate(LinearModel(), flat_images(0.0), 0, NoiseTable(1, 10, n_replicates=1))
    assert math.isnan(result.standard_error) and result.mean > 0


def test_per_image_means_are_in_the_order_of_the_images() -> None:
    result = estimate(LinearModel(), flat_images(0.0, 2.0, 1.0), 0)
    assert result.per_image == pytest.approx((1, 5, 2), rel=0.05)
    assert statistics.mean(result.per_image) == pytest.approx(result.mean, rel=1e-12)


@pytest.mark.parametrize("n_strata", [T_BINS, 2 * T_BINS])
def test_means_by_time_are_those_of_the_closed_form(n_strata: int) -> None:
    images = flat_images(0.0, 0.0)
    result = estimate(LinearModel(1.0), images, 0, NoiseTable(2, n_strata, 20, equal=True))
    bins = [mean_loss(1.0, 0.0, t_low=b / T_BINS, t_high=(b + 1) / T_BINS) for b in range(T_BINS)]
    assert result.per_t_bin == pytest.approx(bins, abs=0.02)
    assert statistics.mean(result.per_t_bin) == pytest.approx(result.mean, rel=1e-9)


def test_means_by_time_count_times_by_the_width_of_their_strata() -> None:
    """Of black images, whose loss is (1 - t)^2: most times below 0.1 are below 0.03."""
    result = estimate(LinearModel(1.0), flat_images(0.0, 0.0), 0, NoiseTable(2, 25, 40))
    bins = [mean_loss(1.0, 0.0, t_low=b / T_BINS, t_high=(b + 1) / T_BINS) for b in range(T_BINS)]
    assert result.per_t_bin == pytest.approx(bins, abs=0.02)
    assert result.per_t_bin[0] == pytest.approx(bins[0], abs=0.007)


def test_means_by_time_are_right_where_a_replicate_has_no_time() -> None:
    result = estimate(LinearModel(), flat_images(0.0), 0, NoiseTable(1, 3, n_replicates=40))
    assert result.per_t_bin == pytest.approx([1.0] * T_BINS, rel=0.2)


def test_paired_difference_of_near_networks_is_far_surer_than_each() -> None:
    images, table = flat_images(0.0, 1.0), NoiseTable(2, 25, 8)
    a, b = (estimate(LinearModel(slope), images, 0, table) for slope in (1.01, 1.0))
    difference = paired_difference(a, b)
    assert difference.mean == pytest.approx(a.mean - b.mean, abs=1e-12)
    assert difference.standard_error < min(a.standard_error, b.standard_error) / 10
    expected = mean_loss(1.01, 0.5) - mean_loss(1.0, 0.5)
    assert abs(difference.mean - expected) < 4 * difference.standard_error
    assert difference.n_evaluations == a.n_evaluations + b.n_evaluations


def test_differences_need_the_same_replicates() -> None:
    def result(n_replicates: int) -> LossTable:
        return estimate(LinearModel(), flat_images(0.0), 0, NoiseTable(1, 10, n_replicates))

    with pytest.raises(ValueError, match="2 replicates against 3"):
        paired_difference(result(2), result(3))


def test_table_for_another_number_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="the table is for 3 images, not 2"):
        estimate(LinearModel(), flat_images(0.0, 1.0), 0, NoiseTable(3))


def run_author(model: nn.Module) -> None:
    author_estimate(model, flat_images(0.0), 0, passes=2)


def run_table(model: nn.Module) -> None:
    estimate(model, flat_images(0.0), 0, NoiseTable(1, 10, 2))


@pytest.mark.parametrize("run", [run_author, run_table])
@pytest.mark.parametrize("training", [True, False])
def test_networks_are_evaluated_and_get_their_mode_back(run: object, training: bool) -> None:
    assert callable(run)
    model = LinearModel().train(training)
    model.frozen_norm.eval()  # as a frozen layer of a training network is
    run(model)
    assert model.modes == {(False, False)}, "evaluation mode, no gradients"
    assert (model.training, model.frozen_norm.training) == (training, False)


@pytest.mark.parametrize("run", [run_author, run_table])
def test_broken_networks_get_their_mode_back(run: object) -> None:
    assert callable(run)
    model = BrokenModel().train()
    with pytest.raises(RuntimeError, match="broken"):
        run(model)
    assert model.training


def test_estimates_read_as_mean_and_error() -> None:
    result = estimate(LinearModel(), flat_images(0.0), 0, NoiseTable(1, 10, 2))
    mean, error = str(result).split(" ± ")
    assert float(mean) == pytest.approx(result.mean, abs=5e-5)
    assert float(error) == pytest.approx(result.standard_error, abs=5e-5)
