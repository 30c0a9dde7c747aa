"""Types of the benchmarks' options."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number of 1 or more, as `argparse` takes it."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive; write 1 or more")
    return number
