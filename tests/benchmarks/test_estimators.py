"""What evaluations buy: a row's arithmetic, antithetic tables, and a whole run at a tiny size."""

from __future__ import annotations

import pytest
import torch

from benchmarks import estimators
from benchmarks.estimators import TARGET, AntitheticTable, line, main
from finetune.model.unet import ConditionalDiffusionUNet

ROWS = (
    "author's: t and noise at random",
    "1 equal strata",
    "5 equal strata",
    "25 equal strata",
    "25 strata, narrow near t = 0",
    "25 strata, antithetic noise",
    "25 strata, pretrained as control",
    "difference of two recipes, one table",
    "difference of two recipes, two tables",
)


def test_a_row_tells_variance_evaluations_and_ratio() -> None:
    row = line("so", 4 * TARGET**2, 12 * TARGET**2, 33)
    # The error of a ratio of variances, one of 33 values: sqrt(2 / 32) of it.
    assert row.split() == ["so", "1.00e-06", "4", "3.0", "±", "0.8"]


def test_antithetic_replicates_have_the_times_of_the_one_before_and_its_noise_negated() -> None:
    table = AntitheticTable(2, 3, 4, seed=1)
    parts = [table.replicate(r) for r in range(4)]
    for first, second in (parts[:2], parts[2:]):
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], -second[1])
    assert not torch.equal(parts[0][0], parts[2][0])


def test_a_tiny_run_prints_a_row_for_each_estimator(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, drawn_once: None
) -> None:
    torch.manual_seed(0)
    tiny = ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)
    monkeypatch.setattr(estimators, "load_network", lambda path: tiny)
    options = ["--source", "drawn", "--rune", "thorn", "--output", "velocity"]
    assert main([*options, "--steps", "2", "--replicates", "4", "--passes", "40"]) == 0
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("thorn, ") and title.endswith("by the author's 40 passes")
    assert [row[:44].split(" (r=")[0].strip() for row in rows] == list(ROWS)
    figures = [[float(word) for word in row[44:].replace("±", "").split()] for row in rows]
    baseline = figures[0][0]
    for row, (variance, needed, ratio, _) in zip(rows, figures, strict=True):
        assert needed == pytest.approx(variance / TARGET**2, rel=0.01, abs=1)
        of = 2 * baseline if row.startswith("difference") else baseline
        assert ratio == pytest.approx(of / variance, rel=0.01, abs=0.06)
