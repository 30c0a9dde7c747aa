"""Fixtures that several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: tests run in several processes, which share the cores; so do the workers
# that they start.  The process that only hands out tests must set nothing, as others inherit it.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    _PROCESSES = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    _THREADS = str(max(1, (os.cpu_count() or 1) // _PROCESSES))
    os.environ.setdefault("OMP_NUM_THREADS", _THREADS)
    os.environ.setdefault("RUNES_THREADS", _THREADS)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory with real Omniglot and MNIST; a test that asks for it skips without."""
    named = os.environ.get("RUNES_DATA")
    if not named:
        pytest.skip("needs real Omniglot: set RUNES_DATA")
    return Path(named)
