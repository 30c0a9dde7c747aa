"""Several calls at once: each comes out as it does alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finetune.adapt import Progress, adapt
from finetune.data.runes import resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.recipe import Recipe
from finetune.side_by_side import Task, adapt_together


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit holds there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def task(name: str, seed: int = 0, **values: Any) -> Task:
    torch.manual_seed(seed)
    fields = {"steps": 12, "batch_size": 4, "precision": "fp32", "deadline_s": 1000.0, **values}
    drawings = resize_bitmaps(draw_rune(name, 4, seed=seed), "bilinear")
    network = ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)
    return Task(network, drawings, Recipe(head_hidden=4, seed=seed, **fields))


def test_tasks_side_by_side_come_out_as_each_alone() -> None:
    tasks = [task("ing"), task("thorn", seed=1), task("ing", seed=2, lr=1e-3)]
    seen: list[list[float]] = [[], [], []]
    together = adapt_together(tasks, lambda k, progress: seen[k].append(progress.loss))
    for k, t in enumerate(tasks):
        told: list[Progress] = []
        alone = adapt(t.pretrained_model, t.drawings, t.recipe, told.append)
        assert together[k].steps == alone.steps == 12
        assert seen[k] == [progress.loss for progress in told]
        state = alone.model.state_dict()
        assert all(torch.equal(v, state[n]) for n, v in together[k].model.state_dict().items())


def test_a_true_answer_stops_a_task() -> None:
    tasks = [task("ing"), task("thorn", seed=1)]
    together = adapt_together(tasks, lambda k, progress: progress.step == 5)
    assert [(a.steps, a.stopped) for a in together] == [(5, True)] * 2


def test_tasks_of_different_schedules_are_refused() -> None:
    for values in ({"steps": 11}, {"batch_size": 5}, {"deadline_s": 900.0}):
        with pytest.raises(ValueError, match=r"need equal steps, batch_size, deadline_s$"):
            adapt_together([task("ing"), task("thorn", **values)], lambda *_: None)
