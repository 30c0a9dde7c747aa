"""Replays: the table survives its file, costs are counted, and racing costs less."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from benchmarks.replay import (
    BASELINE,
    Step,
    calls_to,
    in_order,
    pick,
    prefix_correlations,
    print_races,
    random_target,
    replay,
    report_curves,
    report_recipes,
    strategies,
    suggest_order,
)
from benchmarks.replay_table import (
    Table,
    from_trials,
    joined,
    kept_calls,
    read_table,
    write_table,
)
from finetune.errors import UserError
from hpo.problem.base import digest_of
from hpo.trial.calls import CallKey, row_of
from hpo.trial.record import Call

K = 4


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def table(n: int = 40, seed: int = 0, noise: float = 0.01) -> Table:
    rng = np.random.default_rng(seed)
    distributions: dict[str, Any] = {
        "a": FloatDistribution(0, 1),
        "b": FloatDistribution(1e-3, 1e-1, log=True),
        "c": CategoricalDistribution(("x", "y", "z")),
    }
    params: list[dict[str, Any]] = [
        {"a": rng.random(), "b": 10 ** (-3 + 2 * rng.random()), "c": "xyz"[rng.integers(3)]}
        for _ in range(n)
    ]
    quality = np.array([(p["a"] - 0.3) ** 2 + 0.1 * (math.log10(p["b"]) + 2) ** 2 for p in params])
    logs = quality[:, None] + 0.3 * rng.standard_normal(K) + noise * rng.standard_normal((n, K))
    seconds = rng.random((n, K)).round(3)
    names = [f"r{k}/0" for k in range(K)]
    return Table(params, distributions, names, 0.1 * np.exp(logs), seconds, seconds[..., None])


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    before = table()
    for name in ("a.csv.gz", "b.csv.gz"):
        write_table(before, tmp_path / name)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    after = read_table(tmp_path / "a.csv.gz")
    assert (after.params, after.distributions) == (before.params, before.distributions)
    assert after.instances == before.instances
    assert np.array_equal(after.losses, before.losses)
    assert np.array_equal(after.seconds, before.seconds)
    assert np.allclose(after.curves, before.curves, rtol=1e-3)


def test_tables_are_joined_without_repeats() -> None:
    a, b = table(5, seed=1), table(4, seed=2)
    both = joined(a, b)
    assert both.params == a.params + b.params
    assert np.array_equal(both.losses, np.concatenate([a.losses, b.losses]))
    again = joined(both, b)
    assert len(again) == 9
    with pytest.raises(UserError, match="differ in their instances"):
        joined(a, in_order(b, [1, 0, 2, 3]))


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", gzip.compress(b"", mtime=0), gzip.compress(b"# {}\n", mtime=0)]
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.csv.gz"
    with pytest.raises(UserError, match="is no table of trials"):
        read_table(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no table of trials"):
        read_table(path)


def test_a_table_is_made_of_complete_trials_with_the_same_instances() -> None:
    def trial(state: TrialState, labels: list[str]) -> optuna.trial.FrozenTrial:
        measured = [
            {"instance": name, "loss": 0.1, "seconds": 1.0, "curve": [0.2, 0.1]} for name in labels
        ]
        return create_trial(
            state=state,
            value=0.1,
            params={"a": 0.5},
            distributions={"a": FloatDistribution(0, 1)},
            user_attrs={"instances": measured},
        )

    whole, pruned = trial(TrialState.COMPLETE, ["r", "s"]), trial(TrialState.PRUNED, ["r"])
    found = from_trials([whole, pruned, whole])
    assert (len(found), found.instances) == (2, ["r", "s"])
    assert found.curves.shape == (2, 2, 2)
    with pytest.raises(UserError, match="no trial is complete"):
        from_trials([pruned])
    with pytest.raises(UserError, match="other instances"):
        from_trials([whole, trial(TrialState.COMPLETE, ["r"])])


def test_a_table_has_the_recipes_whose_missing_calls_are_kept() -> None:
    def trial(state: TrialState, a: float, labels: list[str]) -> optuna.trial.FrozenTrial:
        calls = [{"instance": r, "loss": 0.1, "seconds": 1.0, "curve": [0.2]} for r in labels]
        return create_trial(
            state=state,
            value=0.1,
            params={"a": a},
            distributions={"a": FloatDistribution(0, 1)},
            user_attrs={"instances": calls, "recipe": json.dumps({"a": a})},
        )

    whole = trial(TrialState.COMPLETE, 0.5, ["r", "s"])
    pruned, other = (trial(TrialState.PRUNED, a, ["r"]) for a in (0.6, 0.7))
    call = Call(instance="s", loss=0.3, seconds=2.0, curve=(0.4,))
    rows = [row_of(CallKey(digest_of({"a": 0.6}), "s", "basis"), 1, 3, call)]
    rows.append(
        replace(row_of(CallKey(digest_of({"a": 0.7}), "s", "basis"), 1, 4, call), value_json="{")
    )
    found = from_trials([whole, pruned, other], kept_calls(rows))
    assert [p["a"] for p in found.params] == [0.5, 0.6]
    assert found.losses.tolist() == [[0.1, 0.1], [0.1, 0.3]]
    assert found.seconds.tolist() == [[1.0, 1.0], [1.0, 2.0]]


def test_distances_are_in_units_of_the_space() -> None:
    t = table()
    base = {"a": 0.2, "b": 1e-2, "c": "x"}

    def distance(**changed: Any) -> float:
        return float(np.linalg.norm(t.coordinates(base | changed) - t.coordinates(base)))

    assert distance(a=0.5) == pytest.approx(0.3)
    assert distance(b=1e-1) == pytest.approx(0.5)  # half of the two decades
    assert distance(c="z") == pytest.approx(1.0)


def test_random_search_in_full_pays_every_call_once() -> None:
    t = table()
    steps = replay(t, strategies([0.2], t)[BASELINE], seed=1)
    assert sorted(s.row for s in steps) == list(range(len(t)))
    assert [s.calls for s in steps] == [K * (i + 1) for i in range(len(t))]
    assert all(s.complete for s in steps)
    target = t.quality[steps[6].row]
    first = next(i for i, s in enumerate(steps) if t.quality[s.row] <= target)
    assert replay(t, strategies([0.2], t)[BASELINE], 1, 0, target) == steps[: first + 1]
    assert replay(t, strategies([0.2], t)[BASELINE], 1, 10 * K, target) == steps[:10]


def test_racing_pays_for_losers_little_and_finds_the_best() -> None:
    t = table()
    raced = replay(t, strategies([0.2], t)["TPE, racing 0.2"], seed=0)
    assert raced == replay(t, strategies([0.2], t)["TPE, racing 0.2"], seed=0)
    assert raced[-1].calls < 0.6 * t.losses.size
    best = int(t.quality.argmin())
    assert next(s for s in raced if s.row == best).complete


def test_what_is_counted() -> None:
    quality = np.array([0.3, 0.2, 0.1])
    steps = [Step(2, 1, False), Step(0, 5, True), Step(1, 9, True)]
    assert calls_to(steps, quality, 0.3) == 5
    assert calls_to(steps, quality, 0.2) == 9
    assert calls_to(steps, quality, 0.1) == math.inf  # it was dropped
    assert pick(steps, quality, 9) == 1
    assert pick(steps, quality, 8) == 0
    assert pick(steps, quality, 1) is None


def test_the_target_is_what_random_search_reaches() -> None:
    quality = np.arange(1.0, 161.0)
    assert random_target(quality, 160, 2) == 1.0
    assert random_target(quality, 1, 50) == pytest.approx(80.5, rel=0.1)


def test_an_order_puts_the_telling_instances_first() -> None:
    rng = np.random.default_rng(0)
    quality = rng.standard_normal(200)
    noise = np.array([0.5, 0.01, 0.6])  # of each instance
    losses = np.exp(0.1 * (quality[:, None] + noise * rng.standard_normal((200, 3))))
    order = suggest_order(losses)
    assert sorted(order) == [0, 1, 2] and order[0] == 1
    given, suggested = prefix_correlations(losses, [0, 1, 2]), prefix_correlations(losses, order)
    assert suggested[0] > given[0]
    assert suggested[-1] == pytest.approx(1.0)
    t = table()
    assert np.array_equal(in_order(t, [2, 0, 1, 3]).losses[:, 0], t.losses[:, 2])


def test_curves_that_tell_the_end_are_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    t = table(30)
    curves = np.repeat(t.losses[:, :, None], 16, axis=2)
    report_curves(replace(t, curves=curves))
    text = capsys.readouterr().out
    assert text.count("1.00 at 25%") == text.count("1.00 at 100%") == 2


def test_the_first_recipe_is_set_against_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    t = table(60)
    ordered = t.rows(np.argsort(-t.quality).tolist())
    report_recipes(ordered)
    text = capsys.readouterr().out
    assert f"the first recipe: {t.quality.max():.4f}, and 59 of the others are better" in text
    assert f"the best other: {t.quality.min():.4f}" in text
    for best in (59, 30):  # rows are from bad to good
        ratios = np.log(ordered.losses[0] / ordered.losses[best])
        assert f"ratio to it is {math.exp(ratios.mean()):.3f}" in text
    for choice in "xyz":
        losses = [q for q, p in zip(t.quality, t.params, strict=True) if p["c"] == choice]
        losses = [q for q in losses if q < t.quality.max()]  # but for the first one
        assert f"  c = {choice}: {len(losses)} recipes, median {np.median(losses):.4f}" in text
    assert {line.split()[0] for line in text.splitlines()[-4:-1]} == {"a", "b", "c"}
    assert text.splitlines()[-2].split()[0] == "c", "it plays no part"


def test_processes_share_the_replays_and_change_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = print_races(table(12), [0.2], 2, [BASELINE])
    shared = print_races(table(12), [0.2], 2, [BASELINE], processes=2)
    assert alone == shared


def test_the_report_names_the_baselines_and_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    runs = print_races(table(12), [0.2], 3, ["random"])
    text = capsys.readouterr().out
    assert [r.name for r in runs[:2]] == list(strategies([0.2], table(12)))[:2]
    assert all(r.met == 3 for r in runs), "the whole table was searched"
    assert runs[0].dropped == 0
    line = next(line for line in text.splitlines() if line.startswith(BASELINE))
    assert " 1.00 " in line
