"""Steps of runs side by side on a CPU, each in threads of its own.

A step on 16 small images is some thousand short operations, which gain little by a second core:
a network does not do half as many steps again on two threads as on one.  Two networks on a thread
each wait for one another only once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import torch

from .executors import Steps
from .run import Run

T = TypeVar("T")


class ThreadedSteps:
    """As `Steps`, with torch's threads dealt out to ``runs``; to be entered and left.

    Of each run the numbers are those of a run alone on as many threads.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._steps = [Steps([run]) for run in runs]
        self._pools: list[ThreadPoolExecutor] = []
        self._open = ExitStack()

    def __enter__(self) -> ThreadedSteps:
        threads = torch.get_num_threads()
        # A thread's number is its own, but what it sets is also where later threads start.
        self._open.callback(torch.set_num_threads, threads)
        for _ in self._steps:
            pool = ThreadPoolExecutor(1)
            self._pools.append(self._open.enter_context(pool))
            pool.submit(torch.set_num_threads, max(1, threads // len(self._steps))).result()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def draw(self) -> None:
        """See that the next step has something to learn from."""
        self._each(Steps.draw)

    def train(self, share: float, advance: float) -> list[float]:
        """A step at ``share`` of the schedule that covers ``advance``; each run's flow loss."""
        return [loss for (loss,) in self._each(lambda steps: steps.train(share, advance))]

    def _each(self, what: Callable[[Steps], T]) -> list[T]:
        futures: list[Future[T]] = [
            pool.submit(what, steps) for pool, steps in zip(self._pools, self._steps, strict=True)
        ]
        return [future.result() for future in futures]
