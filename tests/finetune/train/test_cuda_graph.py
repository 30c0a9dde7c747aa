"""Steps side by side, and steps captured on a GPU: the same losses as one run's alone."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.adapt import adapt
from finetune.data.runes import resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.recipe import Recipe
from finetune.side_by_side import Task
from finetune.train.cuda_graph import CapturedSteps
from finetune.train.run import Run

CPU = torch.device("cpu")
RECIPE = Recipe(steps=12, batch_size=4, precision="fp32", deadline_s=1000.0, head_hidden=4)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)


def task(name: str, seed: int = 0, **values: Any) -> Task:
    drawings = resize_bitmaps(draw_rune(name, 4, seed=seed), "bilinear")
    return Task(network(seed), drawings, replace(RECIPE, seed=seed, **values))


def make_run(t: Task, device: torch.device) -> Run:
    return Run(device, t.pretrained_model, t.drawings, t.recipe)


def losses(steps: CapturedSteps, n: int) -> Tensor:
    """Of each step and run, (n, runs)."""
    found = []
    for i in range(n):
        steps.draw()
        found.append(steps.train(i / n, 1 / n))
    return torch.tensor(found)


def losses_one_by_one(runs: list[Run], n: int) -> Tensor:
    """The same by the operations of `adapt`."""
    found = torch.empty(n, len(runs))
    for i in range(n):
        for k, run in enumerate(runs):
            run.weights.set_rates(i / n, 1 / n)
            gradients, loss = run.gradients(next(run.batches))
            run.weights.step(gradients)
            found[i, k] = loss
    return found


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit holds there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("finetune.train.run._DRAWN_AT_ONCE", 12)  # three batches


class Stream:
    """Does what it is given at once."""

    def __init__(self, device: Any = None) -> None: ...

    def wait_stream(self, other: Any) -> None: ...


@pytest.fixture
def without_capture(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU's streams on the CPU, and a GPU's refusal."""
    tried: list[str] = []

    def fail(graph: Any) -> Any:
        tried.append("capture")
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", fail)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    return tried


def test_what_can_not_be_captured_is_launched_step_by_step(without_capture: list[str]) -> None:
    tasks = [task("ing"), task("thorn", seed=1)]
    expected = losses_one_by_one([make_run(t, CPU) for t in tasks], 12)
    runs = [make_run(t, CPU) for t in tasks]
    found = losses(CapturedSteps(runs, CPU), 12)
    assert torch.equal(found, expected)
    assert without_capture == ["capture"], "once, not before each step"


@needs_gpu
def test_captured_steps_are_the_plain_ones() -> None:
    device = torch.device("cuda")
    plain, captured = (make_run(task("ing", steps=60), device) for _ in range(2))
    steps = CapturedSteps([captured], device)
    expected, found = losses_one_by_one([plain], 60), losses(steps, 60)
    assert steps._graph is not None
    torch.testing.assert_close(found, expected, rtol=0.1, atol=1e-3)
    assert len(found.unique()) > 50, "every step has a batch of its own"
    # The rates of the last step are read, not those of the capture.
    before = [p.detach().clone() for p in captured.weights.parameters]
    steps.draw()
    steps.train(1.0, 0.0)
    for parameter, value in zip(captured.weights.parameters, before, strict=True):
        assert torch.equal(parameter, value)


@needs_gpu
def test_branches_of_one_graph_are_as_if_alone() -> None:
    device = torch.device("cuda")
    tasks = [task("ing"), task("thorn", seed=1), task("ing", seed=2, lr=1e-3)]
    steps = CapturedSteps([make_run(t, device) for t in tasks], device)
    together = losses(steps, 40)
    assert steps._graph is not None
    for k, t in enumerate(tasks):
        alone = losses(CapturedSteps([make_run(t, device)], device), 40)
        torch.testing.assert_close(together[:, k], alone[:, 0], rtol=0.1, atol=1e-3)


@needs_gpu
def test_many_draws_refill_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr("finetune.train.run._DRAWN_AT_ONCE_ON_GPU", 12)
    expected = losses_one_by_one([make_run(task("ing"), device)], 40)
    found = losses(CapturedSteps([make_run(task("ing"), device)], device), 40)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=1e-3)


@needs_gpu
def test_a_call_on_a_gpu_comes_back_to_the_cpu() -> None:
    t = task("ing", steps=30)
    adapted = adapt(t.pretrained_model, t.drawings, t.recipe)
    assert adapted.steps == 30
    x, time, c = torch.randn(2, 1, 28, 28), torch.rand(2, 1, 1, 1), torch.full((2,), 10)
    assert adapted.model(x, time, c).isfinite().all()
