"""Which processor a worker uses, and how cores are shared out."""

from __future__ import annotations

import os

import pytest

from hpo.errors import UserError
from hpo.process.devices import choose_device, n_cores, share_cores


def test_cores_are_shared_out_and_nobody_has_none() -> None:
    assert share_cores(1) == n_cores()
    for workers in range(1, 3 * n_cores()):
        assert share_cores(workers) >= 1
        assert share_cores(workers) * workers <= max(n_cores(), workers)


@pytest.mark.parametrize(
    ("device", "visible", "left"),
    [
        (None, "3,5", "3,5"),
        ("cuda", "3,5", "3,5"),
        ("cuda:1", "3,5", "5"),
        ("cuda:1", None, "1"),
        ("cpu", "3,5", ""),
    ],
)
def test_a_device_is_what_is_left_visible(
    monkeypatch: pytest.MonkeyPatch, device: str | None, visible: str | None, left: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    choose_device(device)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == left


def test_a_device_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match="--device is 'gpu'; write cpu, cuda or cuda:N"):
        choose_device("gpu")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES leaves 1"):
        choose_device("cuda:2")
