"""Several networks for one: who they are, how many there are, and what they answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.adapt import AdaptationError, Progress, adapt
from finetune.data.runes import resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.predict import ensemble
from finetune.predict.bank import pooled
from finetune.predict.ensemble import VelocityMean, answer_as_one, count_members
from finetune.recipe import Recipe
from finetune.train.executors import Steps
from finetune.train.run import Run
from finetune.train.threaded import ThreadedSteps
from tests.settings import torch_threads

CPU = torch.device("cpu")
DRAWINGS = resize_bitmaps(draw_rune("ing", 4, seed=0), "bilinear")
RECIPE = Recipe(
    steps=6,
    batch_size=4,
    members=3,
    member_steps=1,
    precision="fp32",
    deadline_s=1000.0,
    views=2,
    head_hidden=4,
    l2_sp=0.1,
)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit holds there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("finetune.train.batches._DRAWN_AT_ONCE", 12)  # three batches
    monkeypatch.setattr("finetune.machine.threads._LEAST_SPEEDUP", 1e9)  # all threads are kept


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    with torch_threads(3):
        yield


def network() -> nn.Module:
    torch.manual_seed(0)
    return ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)


def make_run(recipe: Recipe = RECIPE) -> Run:
    return Run(CPU, network(), DRAWINGS, recipe)


def losses(steps: Steps | ThreadedSteps, n: int) -> list[list[float]]:
    found = []
    for i in range(n):
        steps.draw()
        found.append(steps.train(i / n, 1 / n))
    return found


def questions() -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images of the new class and of a digit, at times that have views and that have none."""
    g = torch.Generator().manual_seed(1)
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 0.5])[:, None, None, None]
    return torch.randn(5, 1, 28, 28, generator=g), t, torch.tensor([10, 10, 10, 10, 3])


def with_one_thread(do: Callable[[], Any]) -> Any:
    with torch_threads(1):
        return do()


# What they answer


@torch.no_grad()
def test_the_answer_is_the_mean_of_all() -> None:
    members = [ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1) for _ in range(3)]
    mean = VelocityMean(members)
    x, t, c = questions()
    c = c.clamp(max=9)
    expected = torch.stack([member(x, t, c) for member in members]).mean(0)
    torch.testing.assert_close(mean(x, t, c), expected)
    assert (mean.n_classes, mean.n_channels_img) == (10, 1)


def test_one_alone_answers_for_itself() -> None:
    model = network()
    assert answer_as_one([model]) is model


def test_they_have_one_bank_of_all_their_images() -> None:
    model = adapt(network(), DRAWINGS, RECIPE).model
    pool = model.bank
    assert all(member.bank is None for member in model.members)
    assert pool.images.shape == (3 * RECIPE.steps * RECIPE.batch_size, 784)
    assert len(pool.images.unique(dim=0)) == len(pool.images), "each drew its own"


# Who they are


@pytest.mark.parametrize("values", [{}, {"output": "velocity"}, {"render": "direct"}])
def test_a_sibling_is_what_a_run_of_its_seed_would_be(values: dict[str, Any]) -> None:
    recipe = replace(RECIPE, **values)
    run = make_run(recipe)
    same, other = run.sibling(0), run.sibling(2)
    assert losses(Steps([same]), 5) == losses(Steps([run]), 5)
    alone = Steps([make_run(other.recipe)])
    assert replace(other.recipe, seed=recipe.seed) == recipe
    assert losses(Steps([other]), 5) == losses(alone, 5) != losses(Steps([make_run(recipe)]), 5)


@torch.no_grad()
@pytest.mark.parametrize("output", ["levels", "velocity"])
def test_they_are_the_networks_of_their_seeds(output: str) -> None:
    recipe = replace(RECIPE, output=output)
    told: list[Progress] = []
    adapted = adapt(network(), DRAWINGS, recipe, told.append)
    assert adapted.steps == 6 and adapted.members == 3
    assert not adapted.model.training and adapted.model.n_classes == 11
    assert isinstance(adapted.model, VelocityMean)

    x, t, c = questions()
    alone_models: list[Any] = []
    told_alone = []
    for k in range(3):
        own = replace(make_run(recipe).sibling(k).recipe, members=1)
        told_alone.append([])
        with torch.enable_grad():
            alone = with_one_thread(partial(adapt, network(), DRAWINGS, own, told_alone[-1].append))
        state = alone.model.state_dict()
        member = adapted.model.members[k].state_dict()
        own_names = state.keys() - {"bank.images"}
        assert all(torch.equal(state[name], member[name]) for name in own_names)
        alone_models.append(alone.model)
    if output == "levels":
        pool = pooled([model.bank for model in alone_models])
        for model in alone_models:
            model.bank = pool
    answers = [model(x, t, c) for model in alone_models]
    torch.testing.assert_close(adapted.model(x, t, c), torch.stack(answers).mean(0))
    each = torch.tensor([[p.loss for p in progress] for progress in told_alone])
    torch.testing.assert_close(torch.tensor([p.loss for p in told]), each.mean(0))


# Threads


def test_threads_give_each_what_it_gives_alone() -> None:
    runs = [make_run(), make_run().sibling(1)]
    with ThreadedSteps(runs) as steps:
        found = losses(steps, 7)
    one = [with_one_thread(lambda k=k: losses(Steps([make_run().sibling(k)]), 7)) for k in (0, 1)]
    assert [[row[k]] for k in (0, 1) for row in found] == one[0] + one[1]


def test_threads_are_dealt_out_and_given_back() -> None:
    torch.set_num_threads(5)
    before = threading.active_count()
    with ThreadedSteps([make_run(), make_run()]) as steps:
        assert steps._each(lambda _: torch.get_num_threads()) == [2, 2]
        assert threading.active_count() == before + 2
    assert torch.get_num_threads() == 5
    late: list[int] = []
    thread = threading.Thread(target=lambda: late.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert late == [5], "threads that start later begin with all of them"
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_call_leaves_no_thread(error: type[BaseException]) -> None:
    before = threading.active_count()

    def interrupt(progress: Progress) -> None:
        if progress.step == 2:
            raise error

    with pytest.raises(error):
        adapt(network(), DRAWINGS, RECIPE, interrupt)
    assert threading.active_count() == before
    assert torch.get_num_threads() == 3


def test_an_error_in_a_thread_is_the_calls() -> None:
    class Broken(ConditionalDiffusionUNet):
        def forward(self, *_: Any) -> Tensor:
            raise MemoryError("no room")

    torch.manual_seed(0)
    with pytest.raises(MemoryError, match="no room"):
        adapt(Broken(base_dim=8, n_middle_blocks=1), DRAWINGS, RECIPE)


def test_one_that_fails_fails_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(steps: ThreadedSteps, share: float, advance: float) -> list[float]:
        return [0.1, float("nan"), 0.1]

    monkeypatch.setattr(ThreadedSteps, "train", train)
    with pytest.raises(AdaptationError, match="loss is nan at step 1 of 6"):
        adapt(network(), DRAWINGS, RECIPE)


def test_a_word_stops_them_all() -> None:
    adapted = adapt(network(), DRAWINGS, RECIPE, lambda progress: progress.step == 4)
    assert (adapted.steps, adapted.stopped) == (4, True)


# How many


@pytest.mark.parametrize(
    ("seconds", "count", "tried"),
    [
        ({3: 0.09}, 3, [3]),
        ({3: 0.11, 2: 0.09}, 2, [3, 2]),
        ({3: 0.11, 2: 0.11}, 1, [3, 2]),
    ],
)
def test_as_many_as_have_time_for_their_steps(
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[int, float],
    count: int,
    tried: list[int],
) -> None:
    asked: list[int] = []

    def step_seconds(run: Run, n: int) -> float:
        asked.append(n)
        return seconds[n]

    monkeypatch.setattr(ensemble, "_step_seconds", step_seconds)
    recipe = replace(RECIPE, members=8, steps=2000, member_steps=1000)
    assert count_members([make_run(recipe)], CPU, 100.0) == count
    assert asked == tried


@pytest.mark.parametrize(
    ("values", "n_runs", "count"),
    [
        ({}, 1, 3),
        ({"members": 2}, 1, 2),
        ({"members": 1}, 1, 1),
        ({}, 2, 1),  # as many threads as there are members, of all runs
        ({}, 4, 1),
        ({"member_steps": 7}, 1, 1),  # a run of 6 is too short
    ],
)
def test_no_more_than_there_are_threads_and_the_recipe_wants(
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, int],
    n_runs: int,
    count: int,
) -> None:
    monkeypatch.setattr(ensemble, "_step_seconds", lambda run, n: 0.0)
    assert count_members([make_run(replace(RECIPE, **values))] * n_runs, CPU, 100.0) == count


def test_a_gpu_trains_all_side_by_side() -> None:
    runs = [make_run(replace(RECIPE, members=5))] * 2
    assert count_members(runs, torch.device("cuda"), 100.0) == 5
    runs = [make_run(replace(RECIPE, members=5, member_steps=7))]
    assert count_members(runs, torch.device("cuda"), 100.0) == 1


def test_a_step_is_timed_and_nothing_is_learnt() -> None:
    run = make_run()
    before = run.sibling(0)
    assert 0 < ensemble._step_seconds(run, 2) < 100
    assert losses(Steps([run]), 3) == losses(Steps([before]), 3)
