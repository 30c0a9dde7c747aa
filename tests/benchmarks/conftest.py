"""For tests of benchmarks that start processes."""

from __future__ import annotations

import multiprocessing

import pytest

# What those processes import, some of it late.
_IMPORTED = (
    *("benchmarks.scale_player", "benchmarks.storage_case", "benchmarks.throughput_case"),
    *("alembic.command", "alembic.ddl", "psycopg", "torch._dynamo"),
)


@pytest.fixture
def quick_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that would begin from nothing are forked from one that has imported everything."""
    get_context = multiprocessing.get_context
    multiprocessing.set_forkserver_preload(list(_IMPORTED))

    def get_quick_context(method: str | None = None) -> object:
        return get_context("forkserver" if method == "spawn" else method)

    monkeypatch.setattr(multiprocessing, "get_context", get_quick_context)
