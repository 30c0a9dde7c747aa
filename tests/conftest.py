"""Fixtures that several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory with real Omniglot and MNIST; a test that asks for it skips without."""
    named = os.environ.get("RUNES_DATA")
    if not named:
        pytest.skip("needs real Omniglot: set RUNES_DATA")
    return Path(named)
