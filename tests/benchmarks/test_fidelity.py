"""Rank correlations of losses at a fraction of the speed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from benchmarks.fidelity import (
    FULL,
    Row,
    _kendall,
    _spearman,
    agreements,
    main,
    mean_losses,
    read_rows,
)
from hpo.clock.profile import Profile
from hpo.errors import UserError
from tests.cheap import CheapInstance, CheapMethod

STUDY = (Path(__file__).parents[1] / "cheap.toml").read_text() + "\n[fixed]\nsteps = 100\n"
# In the cheap method's ten seconds 20 steps.
MACHINE = Profile(
    machine={},
    method="tests.cheap:CheapMethod",
    precision="fp32",
    startup={"call": 0.0},
    step={"step": 0.5},
)


def rows_of(losses: Mapping[float, Sequence[float | None]]) -> list[Row]:
    return [
        Row(recipe, instance, speed, 1, loss, 10 * speed, "b")
        for speed, of in losses.items()
        for recipe, loss in enumerate(of)
        for instance in ("a", "b")
    ]


def test_equal_ranks_agree_and_reversed_ones_do_not() -> None:
    full: list[float | None] = [1, 2, 3, 4, 5, 6]
    losses = {0.1: full[::-1], 0.5: [1, 4, 9, 16, 25, 36], FULL: full}
    found = agreements(rows_of(losses), [0.1, 0.5, FULL])
    assert [a.speed for a in found] == [0.1, 0.5]
    assert [a.spearman[0] for a in found] == [pytest.approx(-1), pytest.approx(1)]
    assert [a.kendall[0] for a in found] == [pytest.approx(-1), pytest.approx(1)]
    assert [a.regret for a in found] == [6.0, 1.0]
    assert [a.cost for a in found] == [pytest.approx(0.1), pytest.approx(0.5)]


def test_correlations_are_scipys() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(6, size=(2, 5, 9)).astype(float)  # with ties
    for mine, theirs in ((_spearman, spearmanr), (_kendall, kendalltau)):
        expected = [theirs(a, b).statistic for a, b in zip(one, other, strict=True)]
        assert mine(one, other) == pytest.approx(expected)


def test_an_interval_holds_its_value_and_narrows() -> None:
    few = agreements(rows_of({0.5: [1, 3, 2, 4, 5, 6], 1: [1, 2, 3, 4, 5, 6]}), [0.5, FULL])[0]
    for value, low, high in (few.spearman, few.kendall):
        assert low < value <= high <= 1
    both = [float(k // 2 * 2 + (1 - k % 2)) for k in range(60)], [float(k) for k in range(1, 61)]
    many = agreements(rows_of({0.5: list(both[0]), 1: list(both[1])}), [0.5, FULL])[0]
    assert many.spearman[2] - many.spearman[1] < few.spearman[2] - few.spearman[1]


def test_a_loss_that_is_not_finite_ranks_last_and_what_is_not_whole_is_left_out() -> None:
    rows = rows_of({0.5: [2, None, 1, 3], 1: [2, 9, 1, 3]})
    assert mean_losses(rows, [0.5, FULL])[0.5] == {0: 2, 1: math.inf, 2: 1, 3: 3}
    assert agreements(rows, [0.5, FULL])[0].spearman[0] == pytest.approx(1)
    cut = rows[:-1]
    assert set(mean_losses(cut, [0.5, FULL])[0.5]) == {0, 1, 2}
    with pytest.raises(UserError, match="3 recipes were measured at all speeds"):
        agreements(cut, [0.5, FULL])


def test_it_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cheap.toml").write_text(STUDY)
    Path("machine.toml").write_text(MACHINE.to_toml())
    made: list[float] = []
    fail_after = 9

    def behave(values: dict[str, Any], instance: CheapInstance) -> tuple[float, float]:
        if len(made) == fail_after:
            raise KeyboardInterrupt
        made.append(values["lr"])
        return 100 * values["lr"], 1.0

    monkeypatch.setattr(CheapMethod, "behave", staticmethod(behave))
    arguments = ["--study", "./cheap.toml", "--machine", "./machine.toml", "--out", "f.jsonl"]
    arguments += ["--recipes", "5", "--instances", "2", "--workers", "1"]
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    rows = read_rows(Path("f.jsonl"))
    # Recipe by recipe, all speeds of an instance before the next.
    assert [(r.recipe, r.instance, r.speed, r.steps) for r in rows[:5]] == [
        (0, "thorn/0*1", 0.1, 2),
        (0, "thorn/0*1", 0.25, 5),
        (0, "thorn/0*1", 0.5, 10),
        (0, "thorn/0*1", 1.0, 20),
        (0, "ger/0*1", 0.1, 2),
    ]
    assert len(rows) == 9 and rows[8].recipe == 1
    fail_after = -1
    assert main(arguments) == 0
    assert len(made) == 5 * 2 * 4 == len(read_rows(Path("f.jsonl")))
    out = capsys.readouterr().out
    assert "5 recipes, 2 instances" in out and "| 0.25 | 25% | 1.00 (" in out
    assert main([*arguments, "--table"]) == 0 and capsys.readouterr().out == out
    Path("f.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"f\.jsonl:1 is no call"):
        main(arguments)


def test_workers_side_by_side_make_each_call_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cheap.toml").write_text(STUDY)
    Path("machine.toml").write_text(MACHINE.to_toml())
    arguments = ["--study", "./cheap.toml", "--machine", "./machine.toml"]
    arguments += ["--recipes", "4", "--instances", "2"]
    for workers in ("1", "2"):
        main([*arguments, "--workers", workers, "--out", f"{workers}.jsonl"])
    one, two = (
        sorted(read_rows(Path(f"{n}.jsonl")), key=lambda r: (r.recipe, r.instance, r.speed))
        for n in (1, 2)
    )
    assert one == two and len(two) == 4 * 2 * 4
