"""Steps beside other processes: a row for each load, and nobody is left behind."""

from __future__ import annotations

import psutil
import pytest
import torch

from benchmarks import busy
from finetune.errors import UserError


def test_a_row_for_each_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(busy, "_ROUNDS", 2)
    threads = torch.get_num_threads()
    assert busy.main(["--processes", "0", "1", "--batch-size", "2", "--steps", "1"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["0", "1"]
    assert all(float(row[1]) > 0 and float(row[4]) > 0 for row in rows)
    assert torch.get_num_threads() == threads
    with pytest.raises(UserError, match="0 or more"):
        busy.main(["--processes", "-1"])


def test_the_others_end_with_the_block_whatever_happens() -> None:
    before = set(psutil.Process().children())
    with pytest.raises(KeyError), busy.busy(1):
        (other,) = set(psutil.Process().children()) - before
        assert other.is_running()
        raise KeyError
    assert set(psutil.Process().children()) == before
