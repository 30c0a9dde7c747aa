"""Settings that tests change for a while, or start from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Fields of a recipe whose augmented drawings are the drawings themselves.
STILL: dict[str, Any] = {
    "rotation_deg": 0.0,
    "scale": 0.0,
    "aspect": 0.0,
    "shear": 0.0,
    "slope": 0.0,
    "shift_px": 0.0,
    "elastic_px": 0.0,
    "vertical": 1.0,
    "blend": 0.0,
}


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Torch computes with ``n`` threads, and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
