"""Smooth fields along one axis: weights of control points."""

from __future__ import annotations

import torch

from finetune.augment.mix import GRID, spline_matrix


def test_spline_weights_sum_to_one_and_carry_straight_lines() -> None:
    p = torch.linspace(-1, 1, 41)
    spread = spline_matrix(p)
    torch.testing.assert_close(spread.sum(1), torch.ones(41))
    step = 2 / (GRID - 3)
    knots = torch.linspace(-1 - step, 1 + step, GRID)
    torch.testing.assert_close(spread @ knots, p, rtol=0, atol=1e-5)
