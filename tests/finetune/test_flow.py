"""Rectified flow against closed forms: straight lines, and data that is Gaussian.

For pixels x ~ N(m, s^2) and noise e ~ N(0, 1) everything is known.  x_t has the variance
V(t) = (1-t)^2 s^2 + t^2 and the covariance t - (1-t) s^2 with e - x, so the best velocity is

    v(x_t, t) = E[e - x | x_t] = -m + (t - (1-t) s^2) / V(t) * (x_t - (1-t) m),

its loss at t is Var[e - x | x_t] = s^2 / V(t), and over all t it is pi s / 2.  The flow
keeps (x_t - (1-t) m) / sqrt(V(t)), so that it carries noise e to the image m + s e.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetune.flow import (
    Method,
    image_losses,
    integrate,
    interpolate,
    sample,
    stratified_times,
    velocity,
)

M, S = 0.3, 0.5
METHODS: tuple[Method, ...] = ("euler", "heun")


def variance(t: Tensor) -> Tensor:
    return (1 - t) ** 2 * S**2 + t**2


def best_velocity(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
    return -M + (t - (1 - t) * S**2) / variance(t) * (x_t - (1 - t) * M)


def curved_velocity(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
    return torch.sin(3 * x_t) + torch.cos(5 * t)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=gen(seed), dtype=dtype)


def labels(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.long)


def test_lines_run_from_data_to_noise() -> None:
    x, e = normal(3, 0), normal(3, 1)
    ends = [interpolate(x, e, torch.full((3, 1, 1, 1), t)) for t in (0.0, 1.0)]
    assert torch.equal(ends[0], x) and torch.equal(ends[1], e)


def test_each_image_has_its_own_time() -> None:
    x, e = normal(2, 0), normal(2, 1)
    x_t = interpolate(x, e, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    assert torch.equal(x_t, torch.stack([x[0], e[1]]))


@given(t=st.floats(0, 1))
def test_velocity_is_the_derivative_of_the_line(t: float) -> None:
    x, e = normal(2, 0), normal(2, 1)
    later, earlier = (torch.full((2, 1, 1, 1), t + h, dtype=torch.float64) for h in (0.25, -0.25))
    slope = (interpolate(x, e, later) - interpolate(x, e, earlier)) / 0.5  # exact on a line
    torch.testing.assert_close(slope, velocity(x, e), rtol=0, atol=1e-13)


def test_loss_of_each_image_is_the_mean_square_over_its_pixels() -> None:
    x, e = normal(3, 0, torch.float32), normal(3, 1, torch.float32)
    t = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1)
    offsets = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1)
    seen: list[Tensor] = []

    def off_by(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        seen.extend([x_t, t, c])
        return e - x + offsets

    losses = image_losses(off_by, x, e, t, torch.tensor([4, 5, 6]))
    assert losses[0] == 0
    torch.testing.assert_close(losses, torch.tensor([0.0, 1.0, 4.0]))
    assert torch.equal(seen[0], interpolate(x, e, t)) and torch.equal(seen[1], t)
    assert seen[2].tolist() == [4, 5, 6]


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**31))
def test_stratified_times_has_one_in_each_bin(n: int, seed: int) -> None:
    times = stratified_times(n, gen(seed))
    assert times.shape == (n,) and times.min() >= 0 and times.max() < 1
    within = times.double().sort().values * n - torch.arange(n)
    assert within.min() > -1e-3 and within.max() < 1 + 1e-3


def test_stratified_times_stay_below_one_when_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), 1 - 2**-24))
    assert stratified_times(1000, gen()).max() < 1


def test_stratified_times_are_in_random_order_and_uniform() -> None:
    first = torch.stack([stratified_times(4, gen(seed))[0] for seed in range(1000)])
    counts = first.mul(8).long().bincount(minlength=8)
    assert ((counts - 125).abs() < 4 * math.sqrt(125)).all()


def gaussian_losses(model: Callable[[Tensor, Tensor, Tensor], Tensor], n: int) -> Tensor:
    """Losses of ``n`` images at the n stratified times of seed 2."""
    t = stratified_times(n, gen(2)).view(n, 1, 1, 1)
    x, e = M + S * normal(n, 0, torch.float32), normal(n, 1, torch.float32)
    return image_losses(model, x, e, t, labels(n)).double()


def assert_mean(values: Tensor, expected: float) -> None:
    standard_error = values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item() - expected) < 4 * standard_error


def test_best_velocity_has_the_loss_of_the_closed_form() -> None:
    n = 20_000
    losses = gaussian_losses(best_velocity, n)
    assert_mean(losses, math.pi * S / 2)
    assert_mean(losses - S**2 / variance(stratified_times(n, gen(2)).double()), 0.0)


@pytest.mark.parametrize("offset", [-0.2, 0.2])
def test_offset_from_the_best_velocity_costs_its_square(offset: float) -> None:
    worse = gaussian_losses(lambda x, t, c: best_velocity(x, t, c) + offset, 5000)
    assert_mean(worse - gaussian_losses(best_velocity, 5000), offset**2)


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_scaling_the_best_velocity_costs(factor: float) -> None:
    worse = gaussian_losses(lambda x, t, c: factor * best_velocity(x, t, c), 5000)
    assert worse.mean() > gaussian_losses(best_velocity, 5000).mean()


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_sampler_converges_to_the_gaussian_flow_at_its_order(method: Method, order: int) -> None:
    e = normal(4)

    def error(n_steps: int) -> float:
        x = sample(best_velocity, e, labels(4), n_steps=n_steps, method=method)
        return (x - (M + S * e)).abs().max().item()

    assert error(256) < 0.01
    assert error(128) / error(256) == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize("velocity_model", [best_velocity, curved_velocity])
def test_there_and_back_is_the_identity(
    velocity_model: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    x = normal(2)

    def carry(x: Tensor, t_from: float, t_to: float) -> Tensor:
        return integrate(
            velocity_model, x, labels(2), t_from=t_from, t_to=t_to, n_steps=400, method="heun"
        )

    there = carry(x, 0.0, 1.0)
    assert (there - x).abs().max() > 0.1
    torch.testing.assert_close(carry(there, 1.0, 0.0), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_one_step_is_exact_for_a_constant_velocity(method: Method) -> None:
    x, e = normal(2, 0), normal(2, 1)
    drawn = sample(lambda *_: velocity(x, e), e, labels(2), n_steps=1, method=method)
    torch.testing.assert_close(drawn, x, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("method", "expected"),
    [("euler", [1.0, 0.75, 0.5, 0.25]), ("heun", [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.0])],
)
def test_sampler_asks_at_its_own_times(method: Method, expected: list[float]) -> None:
    times: list[float] = []

    def still(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        assert t.shape == (2, 1, 1, 1) and t.dtype == x_t.dtype and c.tolist() == [3, 10]
        times.extend(t.unique().tolist())
        return torch.zeros_like(x_t)

    sample(still, normal(2), torch.tensor([3, 10]), n_steps=4, method=method)
    assert times == expected


def test_no_steps_and_unknown_methods_are_refused() -> None:
    for n_steps in (0, -1):
        with pytest.raises(ValueError, match=rf"n_steps is {n_steps}; write 1 or more"):
            sample(best_velocity, normal(1), labels(1), n_steps=n_steps)
    with pytest.raises(ValueError, match="method is 'rk4'; write 'euler' or 'heun'"):
        sample(best_velocity, normal(1), labels(1), method="rk4")  # type: ignore[arg-type]
