"""What number formats change of a loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.numerics import main, table
from hpo.errors import UserError

CHEAP = str(Path(__file__).parents[1] / "cheap.toml")


def test_differences_are_to_the_first_with_their_error() -> None:
    found = table({"bf16": [1.0, 2.0], "fp32": [1.1, 2.3]})
    assert found.splitlines()[2:] == [
        "| bf16 | 1.50000 |  |  |",
        "| fp32 | 1.70000 | +0.20000 ± 0.10000 | 0.30000 |",
    ]


def test_each_way_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheap method has no precision, which is told as the process told it."""
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(UserError, match=r"^bf16: .*unknown field 'precision'"):
        main(["--study", CHEAP, "--runes", "1"])
