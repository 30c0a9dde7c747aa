"""For tests of benchmarks: processes that start quickly, and sizes that are tiny."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest
import torch

from benchmarks import adapting
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.scoring.estimators import NoiseTable


@pytest.fixture
def quick_starts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that would begin from nothing are forked from one that has imported something.

    What that is says ``IMPORTED`` of the test's module.
    """
    get_context = multiprocessing.get_context
    multiprocessing.set_forkserver_preload(list(request.module.IMPORTED))

    def get_quick_context(method: str | None = None) -> object:
        return get_context("forkserver" if method == "spawn" else method)

    monkeypatch.setattr(multiprocessing, "get_context", get_quick_context)


@pytest.fixture
def make_tiny(monkeypatch: pytest.MonkeyPatch, drawn_once: None) -> Callable[[ModuleType], None]:
    """A benchmark's network is small, and each of its ten bins of t has one time of each image."""

    def patch(benchmark: ModuleType) -> None:
        torch.manual_seed(0)
        tiny = ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)
        for module in (adapting, benchmark):
            monkeypatch.setattr(module, "load_network", lambda path: tiny, raising=False)
            table = partial(NoiseTable, n_strata=10)
            monkeypatch.setattr(module, "NoiseTable", table, raising=False)

    return patch
