"""The cost of evaluating an adapted network, relative to the plain network.

The grader runs the returned network 1,000 times on ten drawings for each rune, and samples take
hundreds of evaluations more, so the cost of one is part of the result.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from ..flow import interpolate
from ..machine.threads import one_thread

GRADER_PASSES = 1000  # the grader's passes over the test drawings of a rune
PASS_DRAWINGS = 10  # drawings in each of the grader's passes
_PASSES = 25
_LEAST_PASSES = 2


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a pass over ten drawings, on one thread, in evaluation mode.

    ``pass_s`` is for the network that a call returned, ``plain_pass_s`` for the pretrained one.
    On a GPU both are wall-clock seconds.
    """

    pass_s: float
    plain_pass_s: float

    @property
    def ratio(self) -> float:
        """Cost of the returned network relative to the plain one."""
        return self.pass_s / self.plain_pass_s


def measure_cost(
    model: nn.Module,
    plain: nn.Module,
    drawings: Tensor,
    label: int,
    passes: int = _PASSES,
    budget_s: float | None = None,
) -> Cost:
    """Time both networks on the same noisy drawings, in alternating passes.

    Each drawing has its own t.  Over the passes they are spread evenly over [0, 1), because the
    cost of an answer may depend on t.  For a network as fast as the plain one this takes a second
    or two.  Modes, threads and the process's random streams are restored.

    Args:
        plain: the pretrained network; it is evaluated for its class 0.  If it is on another device
            than ``model``, a copy of it runs on the device of ``model``.
        drawings: (n, 1, 28, 28); a pass has ten of them, in turn.
        passes: 1 or more, of each network.
        budget_s: wall-clock seconds for all passes together, which then are fewer, but at least
            two.  None: make ``passes``.

    Raises:
        ValueError: there is no drawing or no pass.
    """
    if not len(drawings) or passes < 1:
        raise ValueError(f"{len(drawings)} drawings and {passes} passes; write 1 or more of each")
    device = _device_of(model)
    if _device_of(plain) != device:
        plain = copy.deepcopy(plain).to(device)
    generator = torch.Generator().manual_seed(0)
    x = _ten(drawings)
    plain_s: list[float] = []
    model_s: list[float] = []
    networks = ((plain, 0, plain_s), (model, label, model_s))

    def run_pass(times: Tensor, keep: bool) -> None:
        t = times.view(len(x), 1, 1, 1)
        e = torch.randn(x.shape, generator=generator)
        x_t, t = interpolate(x, e, t).to(device), t.to(device)
        for network, known, seconds in networks:
            c = torch.full((len(x),), known, device=device)
            start = _clock(device)
            network(x_t, t, c)
            if keep:
                seconds.append(_clock(device) - start)

    with _as_graded(model, plain), one_thread(device):
        # The first pass is slower than the others, so it does not count.  It tells how many passes
        # fit into the budget.
        start = time.perf_counter()
        run_pass(_even_times(1, len(x), generator)[0], keep=False)
        if budget_s is not None:
            affordable = int(budget_s / (time.perf_counter() - start)) - 1
            passes = max(min(_LEAST_PASSES, passes), min(passes, affordable))
        for times in _even_times(passes, len(x), generator):
            run_pass(times, keep=True)
    return Cost(statistics.fmean(model_s), statistics.fmean(plain_s))


def measure_pass_s(model: nn.Module, drawings: Tensor, label: int, passes: int = 5) -> float:
    """Wall-clock seconds of one of the grader's passes, on the process's own threads.

    Args:
        drawings: (n, 1, 28, 28); a pass has ten of them, in turn.
        passes: 1 or more; their median is returned, because other programs slow some of them.
    """
    device = _device_of(model)
    generator = torch.Generator().manual_seed(0)
    x = _ten(drawings)
    c = torch.full((len(x),), label, device=device)
    seconds = []
    with _as_graded(model):
        for times in _even_times(passes + 1, len(x), generator):
            t = times.view(len(x), 1, 1, 1)
            x_t = interpolate(x, torch.randn(x.shape, generator=generator), t).to(device)
            t = t.to(device)
            _wait_for(device)
            start = time.perf_counter()
            model(x_t, t, c)
            _wait_for(device)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first is slower


def _ten(drawings: Tensor) -> Tensor:
    return drawings.cpu()[torch.arange(PASS_DRAWINGS) % len(drawings)]


def _even_times(passes: int, n: int, generator: torch.Generator) -> Tensor:
    """Times (passes, n) in (0, 1): the middles of passes x n equal bins, in random order."""
    order = torch.randperm(passes * n, generator=generator)
    return ((order + 0.5) / (passes * n)).view(passes, n)


@contextmanager
def _as_graded(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes and torch's random streams are restored."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    devices = {d.index or 0 for m in models if (d := _device_of(m)).type == "cuda"}
    try:
        for model in models:
            model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _device_of(model: nn.Module) -> torch.device:
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clock(device: torch.device) -> float:
    """CPU time of this process, which other programs change little; on a GPU the wall clock."""
    _wait_for(device)
    return time.perf_counter() if device.type == "cuda" else time.process_time()
