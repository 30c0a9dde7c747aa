"""What an evaluation of an adapted network costs, beside the plain network's.

The grader runs the returned network 1,000 times on ten drawings for each rune, and samples take
hundreds of evaluations more, so what one costs is part of the result.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..flow import interpolate

GRADER_PASSES = 1000  # over the test drawings of a rune
_PASSES = 25


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a pass over the drawings, on one thread, in evaluation mode.

    ``pass_s``: of the network that a call returned; ``plain_pass_s``: of the pretrained one.
    """

    pass_s: float
    plain_pass_s: float

    @property
    def ratio(self) -> float:
        """How many times as long as the plain network the returned one takes."""
        return self.pass_s / self.plain_pass_s


def measure_cost(
    model: nn.Module, plain: nn.Module, drawings: Tensor, label: int, passes: int = _PASSES
) -> Cost:
    """Time both networks on the same noisy ``drawings`` (n, 1, 28, 28), pass by pass, by turns.

    Each drawing has a t of its own; over the passes they are spread evenly, as what an answer
    costs may depend on t.  Takes a second or two for a network as dear as the plain one.  Draws no
    random numbers from the process's stream.

    Args:
        plain: the pretrained network; it is asked about its class 0.
    """
    n = len(drawings)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(passes * n, generator=generator)
    times = ((order + 0.5) / (passes * n)).view(passes, n, 1, 1, 1)
    x = drawings.cpu()
    modes = [(module, module.training) for m in (model, plain) for module in m.modules()]
    threads = torch.get_num_threads()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    try:
        torch.set_num_threads(1)
        model.eval()
        plain.eval()
        with torch.no_grad():
            for t in (times[0], *times):  # the first is thrown away: it is slower
                e = torch.randn(x.shape, generator=generator)
                for returned, network in ((False, plain), (True, model)):
                    device = next(network.parameters()).device
                    c = torch.full((n,), label if returned else 0, device=device)
                    x_t, t_there = interpolate(x, e, t).to(device), t.to(device)
                    start = _clock(device)
                    network(x_t, t_there, c)
                    seconds[returned].append(_clock(device) - start)
    finally:
        torch.set_num_threads(threads)
        for module, training in modes:
            module.training = training
    return Cost(statistics.fmean(seconds[True][1:]), statistics.fmean(seconds[False][1:]))


def _clock(device: torch.device) -> float:
    """CPU time of this process, which others' work changes little; on a GPU the wall clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()
