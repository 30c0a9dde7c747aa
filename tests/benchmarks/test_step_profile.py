"""The profile is of two ways to do the same step."""

from __future__ import annotations

import pytest

from benchmarks.step_profile import contenders, main, operations
from finetune.errors import UserError


def test_both_ways_convolve_and_only_one_has_pytorchs_narrow_norms() -> None:
    found = {name: operations(step, 1) for name, step in contenders("fp32", 2).items()}
    assert list(found) == ["as PyTorch has it", "narrow norms"]
    for times in found.values():
        assert times["aten::convolution_backward"] > 0
        assert list(times.values()) == sorted(times.values(), reverse=True)
    assert "aten::addcmul" in found["narrow norms"]
    assert "aten::addcmul" not in found["as PyTorch has it"]


def test_the_command_prints_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch-size", "2", "--steps", "2", "--rows", "1", "--precision", "fp32"]) == 0
    text = capsys.readouterr().out
    assert "narrow norms are " in text and text.count("median") == 2
    with pytest.raises(UserError, match="are 1 or more"):
        main(["--steps", "0"])
