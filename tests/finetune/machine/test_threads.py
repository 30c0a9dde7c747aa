"""Threads compute steps and draw beside each other; nothing of them is left behind."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import pytest
import torch

from finetune.adapt import adapt
from finetune.data.runes import resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.machine.threads import one_thread, step_threads
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.predict.posterior import last_features
from finetune.recipe import Recipe
from finetune.train.run import Run

CPU = torch.device("cpu")
DRAWINGS = resize_bitmaps(draw_rune("is", 4, seed=0), "bilinear")
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
    with step_threads(CPU) as thread:
        ahead = Run(CPU, network(), DRAWINGS, RECIPE, thread)
        for _ in range(70):
            for one, other in zip(next(alone.batches), next(ahead.batches), strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("output", ["levels", "velocity"])
def test_halves_side_by_side_are_the_halves_one_after_the_other(
    batch_size: int, output: str
) -> None:
    recipe = dataclasses.replace(RECIPE, batch_size=batch_size, output=output)
    with one_thread(CPU), step_threads(CPU) as threads:
        alone = Run(CPU, network(), DRAWINGS, recipe)
        together = Run(CPU, network(), DRAWINGS, recipe, threads)
        for _ in range(3):
            parts, loss = together.gradients(next(together.batches))
            expected_parts, expected = alone.gradients(next(alone.batches))
            assert len(parts) == min(batch_size, 2) and torch.equal(loss, expected)
            for part, expected_part in zip(parts, expected_parts, strict=True):
                for one, other in zip(part, expected_part, strict=True):
                    assert (one is None) == (other is None)
                    assert one is None or other is None or torch.equal(one, other)
            together.weights.set_rates(0.5, 0.1)
            alone.weights.set_rates(0.5, 0.1)
            together.weights.step(parts)
            alone.weights.step(expected_parts)


@pytest.mark.parametrize("batch_size", [6, 7])
def test_the_parts_add_up_to_the_whole_batch(batch_size: int) -> None:
    recipe = dataclasses.replace(RECIPE, batch_size=batch_size)
    run = Run(CPU, network(), DRAWINGS, recipe)
    batch = next(run.batches)
    parts, loss = run.gradients(batch)
    run._n_parts = 1
    (whole,), whole_loss = run.gradients(batch)
    torch.testing.assert_close(loss, whole_loss)
    for halves, expected in zip(zip(*parts, strict=True), whole, strict=True):
        some = [half for half in halves if half is not None]
        assert (expected is None) == (not some)
        if expected is not None:
            torch.testing.assert_close(sum(some[1:], some[0]), expected, rtol=1e-3, atol=1e-5)


def test_each_thread_sees_the_features_of_its_own_call() -> None:
    """Where the network is not ours: its last convolution is looked at as it is called."""
    model = network()
    both_inside = threading.Barrier(2)

    class Waits(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both_inside.wait(timeout=30)
            return x

    model.conv_in.append(Waits())
    x, t, c = torch.randn(2, 1, 28, 28), torch.rand(2, 1, 1, 1), torch.zeros(2, dtype=torch.long)
    plain = network()
    expected = [last_features(plain, image[None], t[:1], c[:1]) for image in x]
    with step_threads(CPU) as threads:
        assert threads is not None
        calls = [threads.submit(last_features, model, image[None], t[:1], c[:1]) for image in x]
        for call, features in zip(calls, expected, strict=True):
            torch.testing.assert_close(call.result(), features)


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
