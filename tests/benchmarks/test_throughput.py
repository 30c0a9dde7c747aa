"""Operations are counted exactly, contenders do what was asked of them, ratios come from rows."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import throughput, throughput_case, throughput_growth
from benchmarks.flops import count_flops, measure_peak
from benchmarks.throughput import main, make_cases, make_row, parse
from benchmarks.throughput_case import Case, Trial, Worked, naive_call, naive_evaluation
from benchmarks.throughput_growth import count_up, grow
from benchmarks.throughput_table import FIGURES, ratios, table
from finetune.data.runes import NEW_LABEL, resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.errors import UserError
from finetune.flow import image_losses
from finetune.model.groups import embedding_of, with_mean_class
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.recipe import Recipe
from finetune.scoring.estimators import NoiseTable, author_estimate
from tests.settings import torch_threads

IMPORTED = ("benchmarks.throughput_case", "torch._dynamo")
DRAWINGS = resize_bitmaps(draw_rune("thorn", 10, 0), "nearest")
TINY = ["--source", "drawn", "--resize", "nearest", "--steps", "2", "--batch-size", "6"]
TINY += ["--repeats", "1", "--t-passes", "3", "--workers", "2", "--precision", "fp32"]


@pytest.fixture
def pretrained() -> ConditionalDiffusionUNet:
    torch.manual_seed(0)
    return ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One core for all that a test starts, which measures quickly."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(throughput, "n_cores", lambda: 1)
    monkeypatch.setattr(throughput, "_PEAK_S", 0.01)
    monkeypatch.setattr(throughput, "in_fresh_process", lambda function, *a: function(*a))
    monkeypatch.setattr(throughput, "NoiseTable", lambda n: NoiseTable(n, 2, 3))
    with torch_threads(1):
        yield


# Operations


def products_by_hand() -> dict[str, int]:
    """Of the small network: pixels x channels out x channels in x kernel."""
    return {
        "conv_in": 28 * 28 * 8 * 18 * 9,
        "down": 14 * 14 * 16 * 8 * 9 + 7 * 7 * 32 * 16 * 9,
        "middle": 7 * 7 * 32 * 32 * 9,
        # Transposed: pixels that go in, each to a whole kernel of pixels; then 1x1.
        "up": 7 * 7 * 64 * 16 * 9 + 14 * 14 * 16 * 16 + 14 * 14 * 32 * 8 * 9 + 28 * 28 * 8 * 8,
        "conv_out": 28 * 28 * 1 * 16 * 9,  # of its channels only the image's
    }


def test_operations_are_counted_as_by_hand(pretrained: ConditionalDiffusionUNet) -> None:
    products = products_by_hand()
    forward = 2 * sum(products.values())
    flops = count_flops(pretrained)
    assert flops.forward == forward
    # The class embedding trains, and reaches the first convolution through its input.
    assert flops.training == 3 * forward
    embedding_of(pretrained).requires_grad_(False)
    assert count_flops(pretrained).training == 3 * forward - 2 * products["conv_in"]
    pretrained.middle.requires_grad_(False)  # its inputs still carry gradients to what is before
    without = 2 * (products["conv_in"] + products["middle"])
    assert count_flops(pretrained).training == 3 * forward - without
    assert not any(module._forward_hooks for module in pretrained.modules())


def test_operations_are_those_that_torch_counts(pretrained: ConditionalDiffusionUNet) -> None:
    inputs = torch.zeros(1, 1, 28, 28), torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        pretrained(*inputs).sum().backward()
    assert count_flops(pretrained).training == counter.get_total_flops()


def test_the_machines_peak_is_a_rate() -> None:
    peak = measure_peak("fp32", 1, 0.01)
    assert 0 < peak.matrices < math.inf
    assert 0 < peak.convolution < math.inf


# Contenders


def test_the_naive_script_trains_on_just_so_many_images_each_drawn_alone(
    pretrained: ConditionalDiffusionUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    seen: list[int] = []

    class Spy(throughput_case.Augmenter):
        def __call__(self, n: int) -> Tensor:
            drawn.append(n)
            return super().__call__(n)

    def losses(model: nn.Module, x: Tensor, e: Tensor, t: Tensor, c: Tensor) -> Tensor:
        assert c.tolist() == [NEW_LABEL] * len(x)
        seen.append(len(x))
        return image_losses(model, x, e, t, c)

    monkeypatch.setattr(throughput_case, "Augmenter", Spy)
    monkeypatch.setattr(throughput_case, "image_losses", losses)
    told: list[int] = []

    def on_step(n: int) -> bool:
        told.append(n)
        return False

    recipe = Recipe(steps=3, batch_size=8, render="direct")
    before = {k: v.clone() for k, v in pretrained.state_dict().items()}
    model = naive_call(pretrained, DRAWINGS, recipe, on_step)
    assert drawn == [1] * 24
    assert seen == told == [10, 10, 4]
    assert all(torch.equal(v, before[k]) for k, v in pretrained.state_dict().items())
    moved = {k: v for k, v in model.state_dict().items() if not k.startswith("conv_out")}
    assert all(not torch.equal(v, before.get(k, v[:0])) for k, v in moved.items())


def test_the_naive_evaluation_is_the_authors(pretrained: ConditionalDiffusionUNet) -> None:
    model = with_mean_class(pretrained).eval()
    torch.manual_seed(0)
    ours = author_estimate(model, DRAWINGS, NEW_LABEL, passes=50)
    naive = naive_evaluation(model, DRAWINGS, 50)
    assert naive.n_evaluations == ours.n_evaluations == 500
    assert naive.standard_error == pytest.approx(ours.standard_error, rel=0.5)
    assert abs(naive.mean - ours.mean) < 5 * math.hypot(naive.standard_error, ours.standard_error)


@pytest.mark.usefixtures("drawn_once", "quick_starts")
def test_a_tiny_run_has_a_row_for_each_contender(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "rows.jsonl"
    assert main([*TINY, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["contender"], r["workers"], r["threads"]) for r in rows] == [
        *(("naive", 1, 1), ("ours", 1, 1), ("ours", 2, 1)),
    ]
    assert [r["batch_size"] for r in rows] == [10, 6, 6]
    assert [r["evaluations"] for r in rows] == [30, 60, 60]
    assert [r["trials"] for r in rows] == [1, 1, 2]
    for row in rows:
        assert (row["images"], row["precision"], row["cores"]) == (12, "fp32", 1)
        figures = {k: v for k, v in row.items() if isinstance(v, float) and k != "load"}
        assert figures.pop("gpu_peak_mib") >= 0
        assert len(figures) == 14
        assert all(0 < value < math.inf for value in figures.values()), figures
        assert row["first_step_s"] <= row["train_s"]
        assert {"cpu", "torch", "rune", "resize", "source"} <= row.keys()
    shown = capsys.readouterr().out
    assert f"torch {torch.__version__}" in shown
    assert "naive, 1 x 1 thread" in shown
    assert "ours, 2 x 1 thread" in shown
    assert shown.count("over naive") == 1


def test_a_fresh_process_is_another() -> None:
    assert throughput_case.in_fresh_process(os.getpid) != os.getpid()


def test_one_worker_of_one_thread_is_measured_once() -> None:
    cases, _ = make_cases(parse([*TINY, "--workers", "1"]))
    assert [c.label for c in cases] == ["naive", "ours, 1 worker"]


def test_no_worker_for_each_core_where_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "n_cores", lambda: 2)
    cases, _ = make_cases(parse([*TINY, "--workers", "0"]))
    assert [(c.label, c.threads) for c in cases[1:]] == [("ours, 1 worker", 2)]


# Rows


def case(contender: Any = "ours", workers: int = 1, **changes: Any) -> Case:
    return Case(
        contender=contender,
        workers=workers,
        threads=1,
        recipes=changes.get("recipes", (Recipe(steps=4, batch_size=25),)),
        network=Path("none"),
        train=DRAWINGS.numpy(),
        test=DRAWINGS.numpy(),
        passes=5,
        table=NoiseTable(10),
    )


def worked(train_s: float, eval_s: float, peak_mib: float) -> Worked:
    trial = Trial(1, 100, (1.0, 1.5), train_s, eval_s, 50, loss=0.1, standard_error=0.01)
    return Worked((trial,), threads=1, precision="fp32", peak_mib=peak_mib, gpu_peak_mib=0.0)


def test_rates_are_of_all_workers_together() -> None:
    flops = SimpleNamespace(forward=1, training=3_000_000)
    both = [worked(4.0, 1.0, 300.0), worked(8.0, 2.0, 200.0)]
    row = make_row(case(workers=2), 7, both, flops)  # type: ignore[arg-type]
    assert row["trials_per_hour"] == pytest.approx(3600 / 5 + 3600 / 10)
    assert row["train_images_per_s"] == pytest.approx(100 / 4 + 100 / 8)
    assert row["eval_images_per_s"] == pytest.approx(50 / 1 + 50 / 2)
    assert row["train_gflops"] == pytest.approx(37.5 * 0.003)
    assert (row["train_s"], row["eval_s"], row["first_step_s"]) == (6.0, 1.5, 1.0)
    assert (row["peak_mib"], row["repeat"], row["trials"]) == (300.0, 7, 2)


def row(contender: str, workers: int, repeat: int, value: float) -> dict[str, Any]:
    names = [name for name, _, _ in FIGURES]
    return {
        **dict.fromkeys(names, value),
        **{
            "contender": contender,
            "workers": workers,
            "threads": 1,
            "together": 1,
            "repeat": repeat,
        },
        "precision": "fp32",
    }


def test_a_ratio_is_of_means_and_its_error_is_of_paired_repeats() -> None:
    # In the order in which they come: there and back.
    rows = [row("naive", 1, 0, 10.0), row("ours", 2, 0, 40.0), row("ours", 1, 0, 20.0)]
    rows += [row("ours", 1, 1, 40.0), row("ours", 2, 1, 56.0), row("naive", 1, 1, 14.0)]
    found = ratios(rows)
    assert list(found) == ["ours, 1 x 1 thread", "ours, 2 x 1 thread"]
    # 48 over 12, and always four times as much: no spread.
    assert found["ours, 2 x 1 thread"]["trials_per_hour"] == pytest.approx((4.0, 0.0))
    # 30 over 12; residuals 20 - 25 and 40 - 35 have a mean's error of 5, over 12.
    assert found["ours, 1 x 1 thread"]["trials_per_hour"] == pytest.approx((2.5, 5 / 12))
    assert f"{'2.50 ± 0.42':>32}{'4.00 ± 0.00':>32}" in table(rows)


def test_one_repeat_has_no_error() -> None:
    rows = [row("naive", 1, 0, 10.0), row("ours", 1, 0, 25.0)]
    assert math.isnan(ratios(rows)["ours, 1 x 1 thread"]["trials_per_hour"][1])
    assert table(rows).splitlines()[-1].split()[-1] == "2.50"


# Growth


def test_growth_counts_workers_up_to_all() -> None:
    assert [count_up(n) for n in (1, 2, 3, 8, 12)] == [
        *([1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]),
    ]


def test_growth_is_measured_at_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Case] = []

    def steps_of(recipe: Recipe) -> Trial:
        # A start of 3 s, then steps of a millisecond an image.
        marks = [3 + 0.001 * recipe.batch_size * (i + 1) for i in range(recipe.steps)]
        images = recipe.steps * recipe.batch_size
        return Trial(1, images, tuple(marks), marks[-1], 0.0, 0, math.nan, math.nan)

    def fake(case: Case) -> list[Worked]:
        measured.append(case)
        return [Worked(tuple(map(steps_of, case.recipes)), 1, "fp32", 1.0, 0.0)] * case.workers

    monkeypatch.setattr(throughput_growth, "measure", fake)
    rows = list(grow(case(), [1, 2], batch_sizes=(8, 64), steps=(2, 4), draws=1))
    assert [(r["grows"], r["x"]) for r in rows] == [
        *(("batch_size", 8), ("batch_size", 64), ("steps", 2), ("steps", 4)),
        *(("workers", 1), ("workers", 2)),
    ]
    assert [r["ms_per_step"] for r in rows[:2]] == pytest.approx([8, 64])
    assert [r["seconds"] for r in rows[2:4]] == pytest.approx([3 + 0.05, 3 + 0.1])
    assert [r.get("images_per_s", 1000) for r in rows] == pytest.approx([1000] * 5 + [2000])
    assert [(c.workers, c.passes) for c in measured] == [(1, 0), (1, 0), (2, 0)]
    # The first draw's steps, then those that are timed.
    assert [r.steps for r in measured[0].recipes] == [2, 64, 8, 2, 4]
    assert throughput.growth_table(rows).splitlines()[:2] == [
        f"{'batch_size':<36}{'ms_per_step':>32}{'images_per_s':>32}",
        f"{'  8':<36}{'8.00':>32}{'1000.00':>32}",
    ]


def test_a_worker_does_its_trials_and_goes_on_while_others_have_some_to_do(
    monkeypatch: pytest.MonkeyPatch, pretrained: ConditionalDiffusionUNet
) -> None:
    class Left:
        """Another worker, who is done when this one has idled for three steps."""

        value, looks = 2, 0

        def get_lock(self) -> threading.Lock:
            return threading.Lock()

    left = Left()
    ran: list[tuple[int, int]] = []

    def run(case: Case, recipe: Recipe, pretrained: Any, on_step: Any) -> Trial:
        ran.append((recipe.steps, case.passes))
        while not on_step(1) and left.looks < 3:
            left.looks += 1
        if left.looks == 3 and len(ran) > 2:
            left.value = 0
        return Trial(1, 1, (0.1,), 0.1, 0.1, 1, 0.1, 0.1)

    monkeypatch.setattr(throughput_case, "load_network", lambda _: pretrained)
    monkeypatch.setattr(throughput_case, "run_trial", run)
    monkeypatch.setattr(throughput_case, "_meeting", threading.Barrier(1), raising=False)
    monkeypatch.setattr(throughput_case, "_unfinished", left, raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    recipes = (Recipe(steps=4, precision="fp32"), Recipe(steps=5, precision="fp32"))
    done = throughput_case._work(case(recipes=recipes))
    assert len(done.trials) == 2
    assert ran == [(4, 5), (5, 5), (5, 0)]  # the third is not counted, nor evaluated
    assert done.peak_mib > 50  # torch is here


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "--repeats is 0; write 1 or more"),
        (["--t-passes", "1"], "--t-passes is 1; write 2 or more"),
        (["--workers", "-1"], "--workers is -1; write 0 or more"),
        (["--steps", "0"], "steps is 0; write a value in"),
        (["--source", "drawn", "--rune", "z"], "no rune 'z'; write some of"),
    ],
)
def test_a_mistake_is_told(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)
