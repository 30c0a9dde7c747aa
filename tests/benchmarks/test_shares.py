"""Shares of two opinions: closed forms, and a whole run at a tiny size."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from benchmarks import shares
from benchmarks.shares import N_BINS, Sums, main, table_of
from finetune.errors import UserError


def images(n: int, seed: int) -> Tensor:
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def column(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_the_best_share_is_that_of_the_truth_between_them() -> None:
    alone, own = images(3, 0), images(3, 1)
    x = alone + column(0.2, 0.7, 0.7) * (own - alone)
    sums = Sums()
    sums.add(x, alone, own, x, column(1.0, 5.0, 7.9), column(0.9, 0.3, 0.6))
    assert sums.count.tolist() == [1, 0, 2] + [0] * (N_BINS - 3)
    assert sums.best_share[0].item() == pytest.approx(0.2)
    assert sums.best_share[2].item() == pytest.approx(0.7)
    assert sums.mixed.sum() == 0
    expected = ((x - alone) / column(0.9, 0.3, 0.6)).square().sum() / 784
    assert sums.alone.sum().item() == pytest.approx(expected.item())


def test_no_other_share_has_a_lower_loss() -> None:
    x, alone, own = images(20, 0), images(20, 1), images(20, 2)
    sums = Sums()
    t = torch.linspace(0.2, 0.9, 20).view(-1, 1, 1, 1)
    sums.add(x, alone, own, alone, torch.full_like(t, 9000.0), t)
    best = sums.best_share[-1].float()

    def loss(share: Tensor) -> float:
        mean = alone + share * (own - alone)
        return ((x - mean) / t).square().mean().item()

    assert loss(best) < min(loss(best - 0.02), loss(best + 0.02))


def test_a_bin_is_told_with_its_losses() -> None:
    sums = Sums()
    x = torch.zeros(4, 1, 28, 28)
    sums.add(x, x + 0.5, x - 0.5, x + 0.1, column(1, 1, 1, 5000), torch.ones(4, 1, 1, 1))
    _, first, last, every = table_of(sums)
    assert first.split() == ["1", "to", "2", "75.0%", "0.2500", "0.2500", "0.0100", "0.50"]
    assert last.split() == ["4096", "and", "more", "25.0%", "0.2500", "0.2500", "0.0100", "0.50"]
    assert every.split() == ["all", "0.2500", "0.2500", "0.0100"]


def test_a_tiny_run_prints_a_table(
    capsys: pytest.CaptureFixture[str], make_tiny: Callable[[ModuleType], None]
) -> None:
    make_tiny(shares)
    options = ["--source", "drawn", "--runes", "thorn", "feoh", "--steps", "1"]
    assert main([*options, "--replicates", "1"]) == 0
    head, *rows, every, last = capsys.readouterr().out.splitlines()
    assert head.startswith("images with a say")
    parts = [row[18:26].strip().removesuffix("%") for row in rows]
    assert sum(map(float, parts)) == pytest.approx(100, abs=0.1 * len(rows))
    assert every.startswith("all")
    assert last.startswith("mixed over the network alone: ")


def test_steps_that_are_none_are_told() -> None:
    with pytest.raises(UserError, match="--steps: steps is 0; write a value in"):
        main(["--source", "drawn", "--steps", "0"])
