"""Learning curves: means of equal parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.worker.learning_curve import N_PARTS, LearningCurve


def grown(losses: list[float], n_steps: int) -> LearningCurve:
    curve = LearningCurve()
    for i, loss in enumerate(losses, start=1):
        curve.add(i / n_steps, loss)
    return curve


def test_parts_are_means_of_their_steps() -> None:
    losses = [float(i) for i in range(4 * N_PARTS)]
    assert grown(losses, len(losses)).means() == pytest.approx(
        [4 * part + 1.5 for part in range(N_PARTS)]
    )


@given(n_steps=st.integers(1, 100))
def test_a_whole_run_has_a_whole_curve_however_few_its_steps(n_steps: int) -> None:
    curve = grown([0.5] * n_steps, n_steps).means()
    assert set(curve) == {0.5}
    assert len(curve) <= N_PARTS and (n_steps < N_PARTS or len(curve) == N_PARTS)


def test_nothing_is_known_before_the_first_step() -> None:
    assert LearningCurve().means() == ()
