"""One thread computes steps and another draws; nothing of either is left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from finetune.adapt import adapt
from finetune.data.runes import resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.machine.threads import drawing_thread, one_thread
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.recipe import Recipe
from finetune.train.run import Run

CPU = torch.device("cpu")
DRAWINGS = resize_bitmaps(draw_rune("ing", 4, seed=0), "bilinear")
RECIPE = Recipe(steps=70, batch_size=8, precision="fp32", deadline_s=1e4, head_hidden=4, blend=0.0)


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def network() -> ConditionalDiffusionUNet:
    torch.manual_seed(0)
    return ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)


def test_steps_have_one_thread_and_the_process_gets_its_own_back() -> None:
    seen = []
    adapt(network(), DRAWINGS, RECIPE, lambda _: seen.append(torch.get_num_threads()))
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3
    with pytest.raises(KeyError), one_thread(CPU):
        raise KeyError
    assert torch.get_num_threads() == 3
    with one_thread(torch.device("meta")):
        assert torch.get_num_threads() == 3


def test_what_is_drawn_ahead_is_what_would_be_drawn_now() -> None:
    """More than two draws of 32 batches, each the same as without a thread."""
    alone = Run(CPU, network(), DRAWINGS, RECIPE)
    with drawing_thread(CPU) as thread:
        ahead = Run(CPU, network(), DRAWINGS, RECIPE, thread)
        for _ in range(70):
            for one, other in zip(alone.next_batch(), ahead.next_batch(), strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_ended_call_leaves_no_thread(error: type[BaseException]) -> None:
    before = threading.active_count()

    def stop(_: object) -> None:
        raise error

    with pytest.raises(error):
        adapt(network(), DRAWINGS, RECIPE, stop)
    assert threading.active_count() == before


def test_an_error_in_the_thread_is_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, calls = Run.draw, []

    def fail(self: Run) -> object:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("no ink")
        return draw(self)

    monkeypatch.setattr(Run, "draw", fail)
    with pytest.raises(ValueError, match="no ink"):
        adapt(network(), DRAWINGS, RECIPE)
