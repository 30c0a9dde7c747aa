"""The gap: means by noise level in closed form, and a whole run at a tiny size."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from benchmarks import gap
from benchmarks.gap import KINDS, losses_by_t, main
from finetune.errors import UserError
from finetune.scoring.estimators import NoiseTable, estimate


class Blind(nn.Module):
    """A velocity of zero: the loss is that of (e - x)."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return torch.zeros_like(x_t)


def test_of_fixed_drawings_the_means_are_those_of_the_estimate() -> None:
    drawings = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    table = NoiseTable(4, n_strata=20, n_replicates=2, equal=True)
    found = losses_by_t(Blind(), lambda t: drawings.repeat_interleave(20, 0), table)
    expected = estimate(Blind(), drawings, 10, table)
    torch.testing.assert_close(found, torch.tensor(expected.per_t_bin, dtype=torch.float64))
    assert found.mean().item() == pytest.approx(expected.mean)


def test_drawings_are_asked_for_the_times_at_which_they_are_seen() -> None:
    """Images of the grey value t: the loss of a blind network is 1 + t^2 at each t."""
    table = NoiseTable(50, n_strata=20, n_replicates=4, equal=True)
    found = losses_by_t(Blind(), lambda t: t[:, None, None, None].expand(-1, 1, 28, 28), table)
    middles = (torch.arange(10, dtype=torch.float64) + 0.5) / 10
    torch.testing.assert_close(found, 1 + middles.square() + 1 / 1200, atol=0.02, rtol=0)


def test_a_tiny_run_prints_every_rune_and_kind(
    capsys: pytest.CaptureFixture[str], make_tiny: Callable[[ModuleType], None]
) -> None:
    make_tiny(gap)
    options = ["--source", "drawn", "--runes", "thorn", "feoh", "--steps", "1"]
    assert main([*options, "--replicates", "1"]) == 0
    *rows, last = capsys.readouterr().out.splitlines()[1:]
    names = [f"{rune}, {kind}" for rune in ("thorn", "feoh", "mean") for kind in KINDS]
    assert [line[:26].strip() for line in rows] == names
    values = torch.tensor([[float(word) for word in line[26:].split()] for line in rows])
    assert values.shape == (9, 1 + 10)
    torch.testing.assert_close(values[:, 1:].mean(1), values[:, 0], atol=2e-4, rtol=0)
    torch.testing.assert_close((values[:3] + values[3:6]) / 2, values[6:], atol=2e-4, rtol=0)
    assert last.startswith("unseen over augmented: ")


def test_steps_that_are_none_are_told() -> None:
    with pytest.raises(UserError, match="--steps: steps is 0; write a value in"):
        main(["--source", "drawn", "--steps", "0"])


@pytest.mark.parametrize("text", ["0", "-3", "2.5", "many"])
def test_a_number_below_one_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--source", "drawn", "--replicates", text])
    assert f"{text} is not positive; write 1 or more" in capsys.readouterr().err
