"""Scales: there and back, and ticks that a person would write."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hpo.report.plots import around
from hpo.report.svg.scale import Scale, tick_texts

NUMBERS = st.floats(-1e9, 1e9)
POSITIVE = st.floats(1e-9, 1e9)


def test_ends_and_middle_fall_where_they_belong() -> None:
    scale = Scale(0.0, 10.0, 300.0, 100.0)
    assert [scale(x) for x in (0.0, 5.0, 10.0)] == [300.0, 200.0, 100.0]
    log = Scale(0.001, 0.1, 0.0, 100.0, log=True)
    assert log(0.01) == pytest.approx(50.0)


@pytest.mark.parametrize(("low", "high", "log"), [(1, 1, False), (2, 1, False), (0, 1, True)])
def test_a_range_that_is_none_is_refused(low: float, high: float, log: bool) -> None:
    with pytest.raises(ValueError, match="no scale from"):
        Scale(low, high, 0, 1, log)


def test_ticks_are_round() -> None:
    assert Scale(0.0, 10.0, 0, 1).ticks(6) == [0, 2, 4, 6, 8, 10]
    assert Scale(0.0812, 0.1049, 0, 1).ticks(6) == [0.085, 0.09, 0.095, 0.1]
    assert Scale(-0.011, 0.001, 0, 1).ticks(5) == [-0.01, -0.005, 0.0]
    assert Scale(3e-4, 2e-2, 0, 1, log=True).ticks(6) == [
        0.0005, 0.001, 0.002, 0.005, 0.01, 0.02,
    ]  # fmt: skip
    assert Scale(1e-6, 1.0, 0, 1, log=True).ticks(4) == [1e-6, 1e-4, 1e-2, 1.0]
    assert len(Scale(0.0031, 0.0034, 0, 1, log=True).ticks(6)) > 1


@given(NUMBERS, NUMBERS, st.integers(2, 9))
def test_ticks_lie_within_ascend_and_are_few(low: float, high: float, most: int) -> None:
    assume(low < high and (high - low) > 1e-9 * max(abs(low), abs(high)))
    assume(high - low > 1e-12)
    ticks = Scale(low, high, 0, 1).ticks(most)
    assert len(ticks) <= most
    assert ticks == sorted(set(ticks))
    room = 1e-9 * max(abs(low), abs(high))
    assert all(low - room <= t <= high + room for t in ticks)


@given(POSITIVE, st.floats(1.001, 1e9), st.integers(2, 9))
def test_logarithmic_ticks_too(low: float, ratio: float, most: int) -> None:
    ticks = Scale(low, low * ratio, 0, 1, log=True).ticks(most)
    assert len(ticks) <= most
    assert ticks == sorted(set(ticks))
    assert all(low * (1 - 1e-9) <= t <= low * ratio * (1 + 1e-9) for t in ticks)


def test_a_range_around_values_holds_them_even_one() -> None:
    assert around([1.0, 3.0], 0.1) == (0.8, 3.2)
    for values in ([0.0], [5.0], [-5.0, -5.0]):
        low, high = around(values)
        assert low < values[0] < high


def test_ticks_are_written_with_equal_decimals() -> None:
    assert tick_texts([0.08, 0.1, 0.12]) == ["0.08", "0.10", "0.12"]
    assert tick_texts([0.0, 50.0]) == ["0", "50"]
    assert tick_texts([0.001, 0.01, 0.1], log=True) == ["0.001", "0.01", "0.1"]
    assert tick_texts([0, 5000, 10_000]) == ["0k", "5k", "10k"]
    assert all(math.isfinite(float(t)) for t in tick_texts([1e-7, 2e-7]))
