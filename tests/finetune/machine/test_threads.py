"""How many threads are used: never more than there were, fewer where that is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from finetune.machine import threads
from finetune.machine.threads import cpu_quota, fastest_threads
from tests.settings import torch_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def eight() -> Iterator[None]:
    with torch_threads(8):
        yield


@pytest.fixture(autouse=True)
def no_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_QUOTA_FILES", ())


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], list[int]]:
    """Makes a number of threads take so long; returns those that are tried, in order."""

    def pretend(seconds: dict[int, float]) -> list[int]:
        tried: list[int] = []

        def took(n: int) -> float:
            tried.append(n)
            torch.set_num_threads(n)
            return seconds[n]

        monkeypatch.setattr(threads, "_seconds", took)
        return tried

    return pretend


@pytest.mark.parametrize(
    ("seconds", "chosen", "tried"),
    [
        ({8: 1.0, 4: 2.0}, 8, [8, 4]),
        ({8: 1.0, 4: 0.9}, 8, [8, 4]),  # that may be noise
        ({8: 1.0, 4: 0.5, 2: 0.6}, 4, [8, 4, 2]),
        ({8: 9.0, 4: 6.0, 2: 3.0, 1: 1.0}, 1, [8, 4, 2, 1]),
    ],
)
def test_as_many_as_are_fastest(
    measure: Callable[[dict[int, float]], list[int]],
    seconds: dict[int, float],
    chosen: int,
    tried: list[int],
) -> None:
    seen = measure(seconds)
    with fastest_threads(CPU):
        assert torch.get_num_threads() == chosen
    assert torch.get_num_threads() == 8
    assert seen == tried


def test_no_more_than_a_container_is_given(
    measure: Callable[[dict[int, float]], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    monkeypatch.setattr(threads, "_QUOTA_FILES", ((str(tmp_path / "cpu.max"),),))
    seen = measure({3: 1.0, 1: 2.0})
    with fastest_threads(CPU):
        assert torch.get_num_threads() == 3
    assert seen == [3, 1]


def test_they_are_put_back_after_an_error(
    measure: Callable[[dict[int, float]], list[int]],
) -> None:
    measure({8: 1.0, 4: 0.1, 2: 1.0})
    with pytest.raises(RuntimeError, match="of the run"), fastest_threads(CPU):
        raise RuntimeError("of the run")
    assert torch.get_num_threads() == 8
    measure({})  # the measurement itself fails
    with pytest.raises(KeyError), fastest_threads(CPU):
        pass
    assert torch.get_num_threads() == 8


def test_one_thread_and_gpus_need_no_measurement(
    measure: Callable[[dict[int, float]], list[int]],
) -> None:
    seen = measure({})
    with fastest_threads(torch.device("cuda")):
        assert torch.get_num_threads() == 8
    torch.set_num_threads(1)
    with fastest_threads(CPU):
        assert torch.get_num_threads() == 1
    assert seen == []


def test_the_measurement_draws_no_random_numbers() -> None:
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    with fastest_threads(CPU):
        assert torch.get_num_threads() in (1, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", None),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("-1 100000", None),  # as version 1 says that there is none
        ("nonsense", None),
        ("", None),
    ],
)
def test_quotas_of_both_versions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int | None
) -> None:
    new, old = tmp_path / "cpu.max", [tmp_path / "quota", tmp_path / "period"]
    missing = str(tmp_path / "missing")
    new.write_text(quota)
    monkeypatch.setattr(threads, "_QUOTA_FILES", ((missing,), (str(new),)))
    assert cpu_quota() == cores
    for file, word in zip(old, [*quota.split(), "", ""][:2], strict=True):
        file.write_text(word + "\n")
    monkeypatch.setattr(threads, "_QUOTA_FILES", ((missing,), tuple(map(str, old))))
    assert cpu_quota() == cores
