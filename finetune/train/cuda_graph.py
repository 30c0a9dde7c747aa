"""Training steps on a GPU as a CUDA graph: captured once, then replayed with a single launch.

A step on 16 images is some hundred short operations, and launching each from Python takes longer
than running it.  A captured step is launched as a whole.  Runs side by side, none of which fills a
GPU, are branches of one graph that run at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .run import Batch, Run

# Steps before the capture, in which libraries choose kernels and the optimizer makes its state.
_PLAIN_STEPS = 3


class CapturedSteps:
    """Steps of ``runs`` on a GPU, side by side.

    If a step can't be captured, its operations are launched one by one.
    """

    def __init__(self, runs: Sequence[Run], device: torch.device, *, capture: bool = True) -> None:
        self._runs = runs
        self._captures = capture
        self._device = device
        self._streams = [torch.cuda.Stream(device) for _ in runs]
        self._drawn: list[Batch] = []  # batches of each run, always at the same memory
        self._left = 0  # how many of these batches are unused
        self._next = torch.zeros(1, dtype=torch.long, device=device)  # of these
        self._losses = torch.zeros(len(runs), device=device)
        self._n_done = 0
        # Rates of each run's groups, where a captured step finds them.
        self._rates = [
            [torch.zeros((), device=device) for _ in run.weights.optimizer.param_groups]
            for run in runs
        ]
        for run in runs:
            for group in run.weights.optimizer.param_groups:
                group["capturable"] = device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None

    def draw(self) -> None:
        """Draw new batches if the next step has none."""
        if self._left:
            return
        drawn = [run.draw() for run in self._runs]
        if self._drawn:
            for places, batches in zip(self._drawn, drawn, strict=True):
                for place, part in zip(places, batches, strict=True):
                    place.copy_(part)
        else:
            self._drawn = drawn
        self._next.zero_()
        self._left = len(drawn[0][0])

    def train(self, share: float, advance: float) -> list[float]:
        """Make a step at ``share`` of the schedule that covers ``advance``; returns flow losses."""
        for run, rates in zip(self._runs, self._rates, strict=True):
            run.weights.set_rates(share, advance)
            if self._device.type == "cuda":
                for group, rate in zip(run.weights.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate.fill_(group["lr"])
        with torch.cuda.device(self._device):
            if self._captures and self._n_done == _PLAIN_STEPS:
                self._capture()
            if self._graph is None:
                self._train()
            else:
                self._graph.replay()
        self._n_done += 1
        self._left -= 1
        losses: list[float] = self._losses.tolist()
        return losses

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._train()
        except RuntimeError:  # something in the network can't be captured
            return
        self._graph = graph

    def _train(self) -> None:
        """Make one step of each run, each in a stream of its own."""
        current = torch.cuda.current_stream()
        for k, (run, stream) in enumerate(zip(self._runs, self._streams, strict=True)):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                batch = tuple(part.index_select(0, self._next)[0] for part in self._drawn[k])
                gradients, loss = run.gradients(batch)
                run.weights.step(gradients)
                self._losses[k].copy_(loss)
        for stream in self._streams:
            current.wait_stream(stream)
        self._next += 1
