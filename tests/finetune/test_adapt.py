"""`finetune_model`: what it returns, what it leaves alone, and that it ends in time."""

from __future__ import annotations

import dataclasses
import math
import time
from itertools import cycle, pairwise
from threading import Lock
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from finetune.adapt import (
    AdaptationError,
    Progress,
    adapt,
    finetune_model,
    read_drawings,
)
from finetune.augment.mix import Augmenter
from finetune.data.runes import DrawingDataset, resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.model.groups import group_of
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.recipe import GROUPS, LORA_GROUPS, Recipe
from finetune.scoring.estimators import NoiseTable, estimate
from finetune.train.optim import lr_factor
from tests.settings import STILL

QUICK: dict[str, Any] = {
    "steps": 6,
    "batch_size": 4,
    "output": "velocity",
    "render": "direct",
    "precision": "fp32",
    "deadline_s": 1000.0,
}
LORA: dict[str, Any] = {"lora_rank": 2, "lora_groups": LORA_GROUPS}
DRAWINGS = resize_bitmaps(draw_rune("ing", 4, seed=0), "bilinear")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit holds there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def quick(**values: Any) -> Recipe:
    return Recipe(**{**QUICK, **values})


def build(kind: type[ConditionalDiffusionUNet] = ConditionalDiffusionUNet) -> Any:
    """A tiny network, the same one each time."""
    torch.manual_seed(0)
    return kind(base_dim=8, n_middle_blocks=1)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """With the embedding cut into digits and the new class."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    rows = state["class_embedding.weight"]
    state["class_embedding.weight"] = rows[:10]
    return state | {"class_embedding.new": rows[10:]}


def adapted(model: nn.Module | None = None, **values: Any) -> dict[str, Tensor]:
    return weights(adapt(model or build(), DRAWINGS, quick(**values)).model)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Over everything but the embedding."""
    squares = [(a[n] - b[n]).square().sum() for n in a if "embedding" not in n]
    return torch.stack(squares).sum().sqrt().item()


# What comes back


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_result_is_the_plain_network_with_one_more_class(lora: dict[str, Any]) -> None:
    model = adapt(build(), DRAWINGS, quick(**lora)).model
    plain = ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1, n_classes=11)
    plain.load_state_dict(model.state_dict(), strict=True)
    for module, expected in zip(model.modules(), plain.modules(), strict=True):
        assert isinstance(module, type(expected))  # norms may be faster ones
    assert model.n_classes == 11
    assert not model.training and all(p.requires_grad for p in model.parameters())

    x, t, c = torch.randn(3, 1, 28, 28), torch.rand(3, 1, 1, 1), torch.full((3,), 10)
    assert model(x, t, c).shape == x.shape
    x, t = x.double(), t.double()
    assert torch.allclose(model.double()(x, t, c), plain.double()(x, t, c), atol=1e-12)


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_pretrained_network_is_left_as_it_was(lora: dict[str, Any]) -> None:
    model = build()
    model.conv_in.requires_grad_(False)
    before, trains = weights(model), [p.requires_grad for p in model.parameters()]
    adapt(model, DRAWINGS, quick(**lora))
    assert same(weights(model), before)
    assert [p.requires_grad for p in model.parameters()] == trains
    assert model.training and model.n_classes == 10
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("trained", "chosen"),
    [
        (set(GROUPS), {}),
        ({"embedding"}, {"train_groups": ("embedding",)}),
        ({"middle", "norm_bias"}, {"train_groups": ("middle", "norm_bias")}),
        ({"up"}, {"train_groups": (), "lora_rank": 2, "lora_groups": ("up",)}),
        (
            {"down", "output", "embedding"},
            {"train_groups": ("output", "embedding"), "lora_rank": 1, "lora_groups": ("down",)},
        ),
    ],
    ids=["all", "embedding", "two", "lora", "lora-and-two"],
)
def test_named_groups_change_and_all_others_stay(trained: set[str], chosen: dict[str, Any]) -> None:
    before, after = weights(build()), adapted(**chosen)
    parameters = [n for n in after if n != "class_embedding.new"]
    groups = {n: group_of(n, after[n]) for n in parameters}
    changed = {groups[n] for n in parameters if not torch.equal(after[n], before[n])}
    assert changed == trained - {"embedding"}, "the digits' rows have no part in it"
    start = before["class_embedding.weight"].mean(0)
    assert torch.equal(after["class_embedding.new"][0], start) == ("embedding" not in trained)


def test_digits_rows_stay_however_far_weights_move() -> None:
    after = adapted(lr=0.1, clip_norm=0)
    assert torch.equal(after["class_embedding.weight"], weights(build())["class_embedding.weight"])


def test_training_lowers_the_loss_on_the_drawings() -> None:
    table = NoiseTable(len(DRAWINGS), n_strata=10, n_replicates=2)
    start = adapt(build(), DRAWINGS, quick(steps=1, lr=1e-7)).model
    recipe = quick(steps=60, batch_size=8, lr=1e-2, **STILL)
    end = adapt(build(), DRAWINGS, recipe).model
    before, after = (estimate(model, DRAWINGS, 10, table).mean for model in (start, end))
    assert after < 0.6 * before


# Randomness


@pytest.mark.parametrize("chosen", [{}, LORA], ids=["full", "lora"])
def test_seed_alone_decides(chosen: dict[str, Any]) -> None:
    results = []
    for seed, global_seed in ((5, 1), (5, 2), (6, 2)):
        model = build()
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        results.append(adapted(model, seed=seed, **chosen))
        assert torch.equal(torch.get_rng_state(), state), "not the global stream"
    assert same(results[0], results[1])
    assert not same(results[1], results[2])


class TimesSeen(ConditionalDiffusionUNet):
    """Remembers the times at which it is asked; copies share the list."""

    seen: list[Tensor]

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        TimesSeen.seen.append(t.detach().flatten())
        return super().forward(x_t, t, c)


def times_seen(**values: Any) -> Tensor:
    """(steps, batch), sorted within each step."""
    TimesSeen.seen = []
    adapt(build(TimesSeen), DRAWINGS, quick(batch_size=16, **values))
    times = torch.cat(TimesSeen.seen).view(-1, 16)  # each step asks twice, side by side
    assert times.min() >= 0 and times.max() < 1
    return times.sort(1).values


@pytest.mark.parametrize("batch_size", [4, 48, 300])
def test_drawings_are_learnt_at_the_times_that_they_were_drawn_for(
    monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    def marked(self: Any, n: int, times: Tensor | None = None) -> Tensor:
        assert times is not None and times.shape == (n,)
        return 1000 * times[:, None, None, None].expand(n, 1, 28, 28)

    seen = []

    class Records(ConditionalDiffusionUNet):
        def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
            t = t.flatten()
            seen.append(x_t.mean((1, 2, 3)).sub(1000 * t * (1 - t)).abs().max().item())
            return super().forward(x_t, t, c)

    monkeypatch.setattr(Augmenter, "__call__", marked)
    adapt(build(Records), DRAWINGS, quick(batch_size=batch_size, steps=8))
    assert len(seen) == 2 * 8  # each step asks twice
    assert max(seen) < 0.5  # the noise's mean over an image deviates by t / 28


def test_times_fill_the_quantiles_of_their_distribution() -> None:
    """Logit-normal and stratified: one in each sixteenth of it, at every step."""
    times = times_seen(logit_mean=1.5, logit_std=0.5)
    quantiles = torch.special.ndtr((torch.logit(times.double()) - 1.5) / 0.5)
    assert ((quantiles * 16 + 1e-3).floor() == torch.arange(16)).all()


# How weights move


def test_a_step_of_adam_moves_a_weight_by_the_learning_rate() -> None:
    after = adapted(steps=1, lr=1e-3, schedule="constant", warmup=0)
    start = weights(build())["conv_out.weight"]
    moved = (after["conv_out.weight"] - start)[0].abs()  # the image's own channel
    assert moved.median().item() == pytest.approx(1e-3, rel=0.01)
    assert moved.max().item() < 1.01e-3


def test_clipping_bounds_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    take_step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *args: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack([g.norm() for g in gradients if g is not None]).norm().item())
        return take_step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    for clip in (0.0, 0.01):
        adapt(build(), DRAWINGS, quick(steps=2, clip_norm=clip))
    assert min(norms[:2]) > 0.02, "it has something to clip"
    assert norms[2:] == pytest.approx([0.01, 0.01], rel=1e-3)


# The schedule

SHARE = st.floats(0, 1)


@given(schedule=st.sampled_from(["cosine", "linear", "constant"]), warmup=st.floats(0, 0.9))
def test_learning_rate_rises_then_falls(schedule: str, warmup: float) -> None:
    recipe = Recipe(schedule=schedule, warmup=warmup)
    n = 200
    factors = [lr_factor(recipe, i / n, 1 / n) for i in range(n)]
    assert all(0 <= f <= 1 for f in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert abs(peak / n - warmup) <= 1.5 / n
    end = {"cosine": 0.01, "linear": 0.1, "constant": 1.0}[schedule]
    assert factors[-1] == 1 if schedule == "constant" else factors[-1] <= end


@given(share=SHARE, warmup=st.floats(0, 0.9))
def test_learning_rate_follows_its_closed_forms(share: float, warmup: float) -> None:
    def factor(schedule: str) -> float:
        return lr_factor(Recipe(schedule=schedule, warmup=warmup), share)

    if share < warmup:
        assert factor("cosine") == factor("linear") == factor("constant") == share / warmup
        return
    done = (share - warmup) / (1 - warmup)
    assert factor("constant") == 1
    assert factor("linear") == pytest.approx(1 - done, abs=1e-12)
    assert factor("cosine") == pytest.approx(math.cos(math.pi * done / 2) ** 2, abs=1e-12)


def test_warm_up_counts_the_step_itself() -> None:
    """So that the first step is not lost."""
    recipe = Recipe(warmup=0.5)
    assert [lr_factor(recipe, i / 8, 1 / 8) for i in range(3)] == [0.25, 0.5, 0.75]


def progress_of(
    model: nn.Module, recipe: Recipe, stop_after: int | None = None
) -> tuple[list[Progress], Any]:
    reports: list[Progress] = []

    def on_step(progress: Progress) -> bool:
        reports.append(progress)
        return progress.step == stop_after

    return reports, adapt(model, DRAWINGS, recipe, on_step)


def test_callback_sees_every_step() -> None:
    reports, result = progress_of(build(), quick(steps=7))
    assert [r.step for r in reports] == list(range(1, 8))
    assert [r.share for r in reports] == [step / 7 for step in range(1, 8)], "no clock in it"
    assert all(0 < r.loss < 100 for r in reports)
    elapsed = [r.elapsed_s for r in reports]
    assert elapsed[0] > 0 and elapsed == sorted(elapsed) and elapsed[-1] <= result.seconds
    assert result.steps == 7 and not result.stopped


def test_clock_has_no_say_early_in_a_run() -> None:
    """Or else the first steps, slow ones, would make two runs of one seed differ."""
    reports, _ = progress_of(build(), quick(steps=1_000_000, deadline_s=50), stop_after=3)
    assert [r.share for r in reports] == [1e-6, 2e-6, 3e-6]


def test_callback_can_stop_the_run() -> None:
    reports, result = progress_of(build(), quick(steps=7), stop_after=3)
    assert len(reports) == result.steps == 3
    assert result.stopped
    last_reports, last = progress_of(build(), quick(steps=3), stop_after=3)
    assert len(last_reports) == 3 and not last.stopped, "it was over anyway"


def test_callback_changes_nothing() -> None:
    _, result = progress_of(build(), quick())
    assert same(weights(result.model), adapted())


class GoesWrong(ConditionalDiffusionUNet):
    """Answers that are no numbers from the third step on."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.calls: list[int] = []  # two a step, by two threads

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        self.calls.append(len(x_t))
        answer = super().forward(x_t, t, c)
        return answer * math.nan if len(self.calls) > 4 else answer


def test_loss_that_is_no_number_ends_the_run() -> None:
    reports: list[Progress] = []
    with pytest.raises(AdaptationError, match="loss is nan at step 3; lower lr"):
        adapt(build(GoesWrong), DRAWINGS, quick(), reports.append)
    assert len(reports) == 2


# The deadline


class Slow(ConditionalDiffusionUNet):
    """Sleeps at each call."""

    sleep_s = 0.1

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        time.sleep(self.sleep_s)
        return super().forward(x_t, t, c)


def test_slow_machine_does_fewer_steps_and_its_whole_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    covered: list[tuple[float, float]] = []

    def spy(recipe: Recipe, share: float, advance: float = 0.0) -> float:
        covered.append((share, advance))
        return lr_factor(recipe, share, advance)

    monkeypatch.setattr("finetune.train.optim.lr_factor", spy)
    adapt(build(), DRAWINGS, quick(steps=1))  # a process's first optimizer takes seconds
    covered.clear()
    recipe = quick(steps=600, deadline_s=1.5)  # a minute of sleep
    reports, result = progress_of(build(Slow), recipe)

    elapsed = [0.0, *(r.elapsed_s for r in reports)]
    slowest = max(b - a for a, b in pairwise(elapsed))
    assert 0.7 < result.seconds < 1.5 + slowest
    assert 2 <= result.steps == len(reports) < 20
    assert not result.stopped
    shares = [r.share for r in reports]
    assert shares == sorted(shares) and shares[-1] == 1
    # The learning rate of each step is that of the share which it covers, end to end.
    ends = [share + advance for share, advance in covered]
    assert ends == pytest.approx(shares)
    assert [share for share, _ in covered] == [0, *shares[:-1]]


class Clock:
    """Stands still but for what networks add: in the place of the module ``time``."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


def timed_run(
    monkeypatch: pytest.MonkeyPatch, deadline_s: float, step_s: list[float]
) -> tuple[list[Progress], Any]:
    """A run whose steps last ``step_s``, over and over, by the clock that it sees."""
    clock, durations = Clock(), cycle(step_s)
    one_at_a_time = Lock()
    calls = []

    class Timed(ConditionalDiffusionUNet):
        def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
            with one_at_a_time:
                calls.append(len(x_t))
                if len(calls) % 2:  # the second half of a step takes no longer
                    clock.now_s += next(durations)
            return super().forward(x_t, t, c)

    monkeypatch.setattr("finetune.adapt.time", clock)
    monkeypatch.setattr("finetune.train.schedule.time", clock)
    return progress_of(build(Timed), quick(steps=1000, deadline_s=deadline_s))


@pytest.mark.parametrize("deadline_s", [3.0, 8.0])
@pytest.mark.parametrize("step_s", [[0.25], [0.6, 0.4, 0.9], [2.0, 0.3]])
def test_deadline_is_kept_and_the_time_is_used(
    monkeypatch: pytest.MonkeyPatch, deadline_s: float, step_s: list[float]
) -> None:
    """With steps of any length, up to half as long again as the longest before."""
    reports, result = timed_run(monkeypatch, deadline_s, step_s)
    assert reports[-1].share == 1
    assert deadline_s - 2.6 * max(step_s) <= result.seconds <= deadline_s


def test_share_follows_the_clock_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    reports, _ = timed_run(monkeypatch, 8.0, [0.25])
    advances = [b.share - a.share for a, b in pairwise(reports)][4:-1]
    assert len(advances) > 15
    assert advances == pytest.approx([advances[0]] * len(advances))
    assert sum(advances) > 0.7


def test_step_longer_than_the_deadline_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slow, "sleep_s", 1.1)
    reports, result = progress_of(build(Slow), quick(steps=100, deadline_s=1.0))
    assert result.steps == len(reports) == 1 and not result.stopped
    assert not same(weights(result.model), weights(build())), "it counts"


# The dataset


class Strict(Dataset[tuple[Tensor, int]]):
    """Knows its length, and takes reading past it ill: an iteration ends by an IndexError."""

    def __len__(self) -> int:
        return len(DRAWINGS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(DRAWINGS):
            raise AssertionError(f"there is no item {index}")
        return DRAWINGS[index], 10


@pytest.mark.parametrize(
    "dataset",
    [
        DrawingDataset(DRAWINGS),
        [(image, 10) for image in DRAWINGS],
        [(image, torch.tensor(10)) for image in DRAWINGS],
        [[image, 10] for image in DRAWINGS],
        list(DRAWINGS),
        DRAWINGS,
        [image.numpy() for image in DRAWINGS],
        [image[0].double() for image in DRAWINGS],
        TensorDataset(DRAWINGS, torch.full((4,), 10)),
        Subset(DrawingDataset(torch.cat([torch.zeros(2, 1, 28, 28), DRAWINGS])), [2, 3, 4, 5]),
        Strict(),
    ],
    ids=[
        *("ours", "ints", "0-d", "lists", "bare", "tensor", "numpy", "flat-double", "tensors"),
        *("subset", "strict"),
    ],
)
def test_datasets_of_every_kind(dataset: Any) -> None:
    images = read_drawings(dataset)
    assert images.dtype == torch.float32
    assert torch.equal(images, DRAWINGS)


@pytest.mark.parametrize("shape", [(1, 27, 28), (3, 28, 28), (1, 105, 105), ()])
def test_image_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        finetune_model(build(), [(DRAWINGS[0], 10), (torch.zeros(shape), 10)])
    assert f"drawing 1 is {shape}; give images of 1x28x28" in str(caught.value)


def test_empty_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        finetune_model(build(), [])


def test_the_call_is_the_adaptation_to_the_dataset() -> None:
    model = finetune_model(build(), DrawingDataset(DRAWINGS), quick())
    assert same(weights(model), adapted())


def test_the_call_may_be_made_where_no_gradients_are() -> None:
    with torch.no_grad():
        model = finetune_model(build(), DrawingDataset(DRAWINGS), quick())
    assert same(weights(model), adapted())


@pytest.mark.parametrize("render", ["pen", "direct"])
def test_strokes_of_one_drawing_are_enough(render: str) -> None:
    recipe = dataclasses.replace(quick(steps=2), render=render)
    result = adapt(build(), DRAWINGS[:1], recipe)
    assert result.steps == 2 and all(p.isfinite().all() for p in result.model.parameters())
