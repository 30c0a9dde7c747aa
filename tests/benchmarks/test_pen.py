"""`benchmarks.pen`: what it says of strokes that are known."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks import pen
from finetune.data.runes import RuneSource


def disc(radius: float) -> Tensor:
    i = torch.arange(105.0) - 52
    return (i.square()[:, None] + i.square() <= radius**2).float()[None]


def test_discs_cover_larger_discs_and_no_smaller_ones() -> None:
    assert pen.covered(disc(2.5), 2.5) == 1
    assert pen.covered(disc(2.5), 3.0) == 0
    assert pen.covered(disc(20), 2.5) > 0.95


def test_covered_is_a_share_of_the_ink() -> None:
    both = disc(2.5)
    both[0, 10, 10] = 1  # no disc fits in
    assert pen.covered(both, 2.5) == pytest.approx(21 / 22)


def test_widths_of_upright_bars() -> None:
    bitmaps = torch.zeros(2, 105, 105)
    bitmaps[0, 20:40, 30:35] = 1
    bitmaps[1, :9, :4] = 1  # in the corner
    assert pen.widths(bitmaps) == Counter({5: 14, 4: 3})
    assert not pen.widths(bitmaps.mT), "edges of five rows are too short to tell"


def test_it_prints_a_table(
    drawn: RuneSource, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = replace(drawn, bitmaps={"is": drawn.bitmaps["is"][:3]})
    monkeypatch.setattr("finetune.data.runes.open_drawn", lambda: few)
    assert pen.main(["--source", "drawn", "--runes", "is"]) == 0
    text = capsys.readouterr().out
    assert "discs of radius 2.5" in text and "true bitmaps" in text
    for resize in ("bilinear", "antialiased", "nearest"):
        assert f"rebuilt from {resize}" in text
