"""What windows add: its sums in closed form, and a whole run at a tiny size."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from benchmarks import windows
from benchmarks.windows import N_BINS, Sums, main, table_of


def test_a_bin_is_told_with_its_losses_and_the_truths_share() -> None:
    sums = Sums()
    without, near = torch.rand(2, 3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    x = without + 0.3 * (near - without)
    t = torch.tensor([0.22, 0.24, 0.9]).view(-1, 1, 1, 1)
    sums.add(x, without, near, x, t)
    assert sums.count.nonzero().flatten().tolist() == [4, N_BINS - 2]
    _, row = table_of(sums)  # windows are not asked at 0.9
    start, alone, by_windows, answer, share = map(float, row.split())
    assert (start, answer, share) == (0.2, 0.0, 0.3)
    errors = ((near - without) / t)[:2].square().mean().item()
    assert alone == pytest.approx(0.09 * errors, abs=1e-4)
    assert by_windows == pytest.approx(0.49 * errors, abs=1e-4)


def test_a_tiny_run_prints_a_table(
    capsys: pytest.CaptureFixture[str], make_tiny: Callable[[ModuleType], None]
) -> None:
    make_tiny(windows)
    options = ["--source", "drawn", "--runes", "thorn", "feoh", "--steps", "1"]
    assert main([*options, "--replicates", "1"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["t", "from", "without", "windows", "with", "best", "share"]
    assert [float(row.split()[0]) for row in rows] == pytest.approx([k / 20 for k in range(3, 14)])
    # Calls do not ask windows there.
    assert rows[-1].split()[1] == rows[-1].split()[3] != rows[-1].split()[2]
    assert last.startswith("with windows over without, at all t: ")
