"""What an answer costs beside the plain network's."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from finetune.model.unet import ConditionalDiffusionUNet
from finetune.scoring.cost import Cost, measure_cost, measure_pass_s

DRAWINGS = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(1))


class Several(nn.Module):
    """Runs the plain network so many times."""

    def __init__(self, plain: nn.Module, times: int) -> None:
        super().__init__()
        self.plain, self.times = plain, times

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        answers = [self.plain(x_t, t, torch.zeros_like(c)) for _ in range(self.times)]
        return torch.stack(answers).mean(0)


class Spy(nn.Module):
    """Notes what it is asked, and takes numbers from the global stream."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.asked: list[Tensor] = []
        self.labels: set[int] = set()
        self.states: set[tuple[bool, bool, int]] = set()

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        assert x_t.shape == (10, 1, 28, 28)
        assert t.shape == (10, 1, 1, 1)
        self.asked.append(t.flatten())
        self.labels |= set(c.tolist())
        self.states.add((self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        return x_t + self.weight + torch.rand(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_the_ratio_is_of_the_two_passes() -> None:
    assert Cost(pass_s=0.06, plain_pass_s=0.04).ratio == pytest.approx(1.5)


def test_a_model_that_runs_the_plain_network_three_times_costs_about_three() -> None:
    plain = ConditionalDiffusionUNet()
    cost = measure_cost(Several(plain, 3), plain, DRAWINGS, 10, passes=6)
    assert 2 < cost.ratio < 4.5
    assert 0.5 < measure_cost(plain, plain, DRAWINGS, 0, passes=6).ratio < 2


@pytest.mark.usefixtures("two_threads")
def test_both_run_as_graded_and_everything_is_put_back() -> None:
    model, plain = Spy(), Spy()
    model.train()
    plain.eval()
    before = torch.get_rng_state()
    measure_cost(model, plain, DRAWINGS, 10, passes=3)
    assert model.states == plain.states == {(False, False, 1)}
    assert model.labels == {10}
    assert plain.labels == {0}
    assert model.training and not plain.training
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("two_threads")
def test_a_model_that_fails_leaves_modes_and_threads_as_they_were() -> None:
    class Broken(Spy):
        def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
            raise RuntimeError("no")

    model, plain = Broken(), Spy()
    with pytest.raises(RuntimeError, match="no"):
        measure_cost(model, plain, DRAWINGS, 10)
    assert model.training and plain.training
    assert torch.get_num_threads() == 2


def test_both_are_asked_the_same_and_t_is_spread_evenly() -> None:
    model, plain = Spy(), Spy()
    measure_cost(model, plain, DRAWINGS, 10, passes=4)
    assert torch.equal(torch.stack(model.asked), torch.stack(plain.asked))
    counted = torch.cat(model.asked[1:])  # the first pass warms up
    assert torch.allclose(counted.sort().values, (torch.arange(40) + 0.5) / 40)
    assert all(0.2 < t.mean() < 0.8 for t in model.asked), "each pass has early and late times"


@pytest.mark.parametrize("n", [1, 3, 25])
def test_a_pass_has_ten_drawings_however_many_there_are(n: int) -> None:
    measure_cost(Spy(), Spy(), torch.rand(n, 1, 28, 28), 10, passes=2)


def test_a_small_budget_means_two_passes_and_a_large_one_all() -> None:
    class Slow(Spy):
        def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
            time.sleep(0.02)
            return super().forward(x_t, t, c)

    for budget_s, counted in ((0.001, 2), (60.0, 6)):
        model = Slow()
        measure_cost(model, Spy(), DRAWINGS, 10, passes=6, budget_s=budget_s)
        assert len(model.asked) == 1 + counted
        times = torch.cat(model.asked[1:]).sort().values
        assert torch.allclose(times, (torch.arange(len(times)) + 0.5) / len(times))


@pytest.mark.parametrize(("n", "passes"), [(0, 2), (10, 0)])
def test_nothing_to_measure_is_an_error(n: int, passes: int) -> None:
    with pytest.raises(ValueError, match="write 1 or more of each"):
        measure_cost(Spy(), Spy(), torch.zeros(n, 1, 28, 28), 10, passes=passes)


@pytest.mark.usefixtures("two_threads")
def test_a_grader_s_pass_is_timed_on_the_process_s_own_threads() -> None:
    class Sleeps(Spy):
        def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
            time.sleep(0.01)
            return super().forward(x_t, t, c)

    model = Sleeps()
    assert measure_pass_s(model, DRAWINGS[:4], 10, passes=3) >= 0.01
    assert len(model.asked) == 4
    assert model.states == {(False, False, 2)}
    assert model.training
