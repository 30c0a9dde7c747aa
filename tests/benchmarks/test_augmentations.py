"""How mixes of augmentations are judged, and what ten drawings can say about them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks.augmentations import TIMES, Judged, left_out, main, said_within
from benchmarks.figures import ratio


def judged(unseen: list[float], within: list[float]) -> Judged:
    """The same at all times."""

    def at_all_times(values: list[float]) -> Tensor:
        return torch.tensor(values)[:, None].expand(-1, len(TIMES))

    return Judged(at_all_times(unseen), at_all_times(within))


def test_each_drawing_is_left_out_once_and_never_learnt_from() -> None:
    drawings = torch.arange(10.0)[:, None]
    parts = list(left_out(drawings))
    assert torch.equal(torch.cat([out for _, out in parts]), drawings)
    for rest, out in parts:
        assert torch.equal(torch.cat([rest, out]).sort(0).values, drawings)


def test_a_ratio_is_of_means_and_its_error_is_that_of_what_is_left() -> None:
    assert ratio([2.0, 4.0], [1.0, 2.0]) == (2.0, 0.0)
    found, error = ratio([1.0, 3.0], [2.0, 2.0])
    assert found == 1.0
    assert error == pytest.approx(math.sqrt(2) / math.sqrt(2) / 2)


def test_what_the_ten_prefer_is_judged_on_unseen_drawings() -> None:
    """The first split's ten are right, the second's are wrong; together they are of no use."""
    default = judged([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    narrow = judged([0.8, 1.1, 1.2], [0.9, 0.8, 1.1])
    lines = list(said_within(["default", "narrow"], [default, narrow]))
    found = torch.tensor([[0.9, 0.8, 1.1], [0.8, 1.1, 1.2]]).corrcoef()[0, 1].item()
    assert lines[1].startswith("narrow")
    assert f"0.933 ± 0.088, correlation {found:+.2f}" in lines[1]
    assert "its own ten prefer: 0.967 ± 0.088 unseen" in lines[2]
    assert "unseen ones prefer: 0.933 ± 0.067 unseen" in lines[3]


def test_it_runs_on_drawn_runes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.augmentations._LEFT_OUT", 5)  # twice, not five times
    monkeypatch.setattr("benchmarks.augmentations._BATCH", 40)
    options = ["--source", "drawn", "--runes", "is", "thorn", "--splits", "1", "--samples", "40"]
    assert main([*options, "--within", "--mix", '{"elastic_px": 0.0, "blend": 0.0}']) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[:1] + out[1].split()[2:5] == ["default", "1.000", "±", "0.000"]
    assert out[2].startswith('{"elastic_px": 0.0, "blend": 0.0}')
    assert "correlation" in out[4]
    assert len(out) == 7
