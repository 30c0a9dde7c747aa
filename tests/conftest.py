"""Fixtures that several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: tests run in a process for each core, which share the cores.  So do the
# workers that they start.
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
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
