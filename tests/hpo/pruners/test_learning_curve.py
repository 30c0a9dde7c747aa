"""Learning curves: means of equal parts, and what counts as beyond hope."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.pruners.learning_curve import N_PARTS, LearningCurve


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


KNOWN = [[1.0 - 0.01 * i] * N_PARTS for i in range(6)]  # from 0.95 to 1


@pytest.mark.parametrize(
    ("loss", "n_steps", "n_known", "hopeless"),
    [
        (2.0, 2 * N_PARTS, 6, True),
        (1.049, 2 * N_PARTS, 6, False),  # above all, but by less than they differ
        (1.051, 2 * N_PARTS, 6, True),
        (2.0, 2 * N_PARTS, 4, False),  # too few are known
    ],
)
def test_hopeless_is_what_is_far_above_all(
    loss: float, n_steps: int, n_known: int, hopeless: bool
) -> None:
    curve, seen = LearningCurve(), []
    for step in range(1, n_steps + 1):
        curve.add(step / n_steps, loss)
        seen.append(curve.is_hopeless(KNOWN[:n_known]))
    assert any(seen) == hopeless
    assert not any(seen[: n_steps // 4]), "too soon to say"


def test_only_whole_parts_count() -> None:
    """A single bad batch at the start of a part is no reason."""
    curve = LearningCurve()
    n_steps = 10 * N_PARTS
    for step in range(1, n_steps + 1):
        curve.add(step / n_steps, 1.3 if step % 10 == 1 else 0.97)
        assert not curve.is_hopeless(KNOWN)
