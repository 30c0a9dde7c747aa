"""Kept calls: what their keys depend on, and that rows are read as they were written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.problem.settings import Confirm, Estimator, Instances
from hpo.trial.calls import CallKey, CallKeys, numerics_of, read_row, row_of
from hpo.trial.record import Call, FailedCall
from hpo.trial.stored import Remark
from tests.cheap import CheapInstance, CheapMethod, CheapProblem

METHOD = CheapMethod()
PROBLEM = CheapProblem(Instances(source="drawn"), Estimator(), Confirm(), None)
MANIFEST = {
    **METHOD.fingerprint(),
    **PROBLEM.fingerprint(),
    "limit": "150 s less 30 s",
    "space": "0f",
}
INSTANCE = CheapInstance("r", 0, 0)
VALUES = METHOD.complete({"lr": 1e-3})


def key(
    manifest: dict[str, str] = MANIFEST, seed: int | None = None, clock: str = "wall"
) -> CallKey:
    return CallKeys(METHOD, PROBLEM, manifest, seed).key(VALUES, INSTANCE, clock)


def test_a_key_is_of_all_that_a_call_depends_on() -> None:
    keys = CallKeys(METHOD, PROBLEM, MANIFEST)
    assert keys.key(VALUES, INSTANCE) == key()
    other_values = METHOD.complete({"lr": 2e-3})
    others = [
        keys.key(other_values, INSTANCE),
        keys.key(VALUES, replace(INSTANCE, seed=1)),
        keys.key(VALUES, replace(INSTANCE, split=1)),
        key(clock="0f0f steps 70"),
        key(seed=1),
        key({**MANIFEST, "code": "other"}),
        key({**MANIFEST, "data": "other"}),
        key({**MANIFEST, "estimator": "other"}),
        key({**MANIFEST, "unheard of": "yet"}),
    ]
    assert len({key(), *others}) == 1 + len(others)


def test_neither_the_space_nor_limits_nor_other_instances_change_a_key() -> None:
    for entry in ("space", "limit", "instances", "networks"):
        assert key({**MANIFEST, entry: "other"}) == key()
    assert key({**MANIFEST, "cost": "2 of the plain network's"}) == key()


def test_numerics_are_the_machine_without_its_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert numerics_of({"device": "cpu", "threads": 2}) == numerics_of(
        {"device": "cpu", "threads": 1}
    )
    before = key()
    for machine, same in [
        ({"device": "cpu", "threads": 7}, True),
        ({"device": "cpu", "threads": 1, "torch": "9"}, False),
        ({"device": "H200", "threads": 1}, False),
    ]:
        monkeypatch.setattr(CheapMethod, "machine", lambda self, machine=machine: machine)
        assert (key() == before) is same


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
CALLS = st.builds(
    Call,
    instance=st.just("ᚠ/0"),
    loss=NUMBERS,
    standard_error=st.none() | NUMBERS,
    seconds=NUMBERS,
    steps=st.integers(0, 9999),
    curve=st.lists(NUMBERS, max_size=3).map(tuple),
    per_t_bin=st.lists(st.none() | NUMBERS, max_size=3).map(tuple),
    picture=st.none() | st.text(),
    cost=st.none() | NUMBERS,
)
FAILED = st.builds(FailedCall, loss=st.none(), seconds=NUMBERS, reason=st.text())
KEY = CallKey("0f0e", "ᚠ/0", "basis")


@given(CALLS | FAILED)
def test_a_row_reads_back(call: Call | FailedCall) -> None:
    row = row_of(KEY, 1, 2, call)
    assert read_row(row) == call
    json.loads(row.value_json)


@given(st.text() | st.recursive(st.none() | NUMBERS, st.lists).map(json.dumps))
def test_whatever_stands_in_a_row_is_a_call_or_a_remark(text: str) -> None:
    row = row_of(KEY, 1, 2, Call(instance="ᚠ/0", loss=0.5))
    assert isinstance(read_row(replace(row, value_json=text)), Remark)


@pytest.mark.parametrize("column", ["recipe", "instance", "basis", "value_json", "checksum"])
def test_a_row_that_was_changed_is_no_call(column: str) -> None:
    row = row_of(KEY, 1, 2, Call(instance="ᚠ/0", loss=0.5))
    changed: dict[str, Any] = {column: getattr(row, column).replace("0", "1") + " "}
    found = read_row(replace(row, **changed))
    assert isinstance(found, Remark)
    assert "is damaged" in str(found)


def test_whose_a_row_is_does_not_change_it() -> None:
    call = Call(instance="ᚠ/0", loss=0.5)
    assert read_row(row_of(KEY, 1, 2, call)) == read_row(row_of(KEY, 9, None, call)) == call
