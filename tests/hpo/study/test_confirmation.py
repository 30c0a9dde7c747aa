"""What a confirmation stores: written as it always was, and read whatever stands there."""

from __future__ import annotations

import json
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.study.confirmation import (
    CONFIRMED_KEY,
    Confirmation,
    read_confirmation,
    read_confirmed_call,
    write_confirmation,
    write_confirmed_call,
)
from hpo.trial.record import Call, FailedCall
from hpo.trial.stored import Remark
from tests.hpo.stored import make_confirmation

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=9), part),
    max_leaves=12,
)
STORED = make_confirmation().to_json()


def test_what_is_written_reads_back_by_any_release() -> None:
    study = optuna.create_study()
    made = make_confirmation()
    write_confirmation(study, made)
    stored = study.user_attrs[CONFIRMED_KEY]
    assert list(stored) == [
        *("name", "trial", "digest", "loss", "standard_error", "cost", "recipe", "against"),
        *("confidence", "units", "instances", "table", "rounds", "estimator", "feasible_s", "code"),
    ]
    assert list(stored["against"]["default"]) == [
        *("name", "trial", "digest", "difference", "standard_error", "low", "high"),
    ]
    assert "runner_up" not in stored["against"]
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    assert read_confirmation(study.user_attrs) == made
    assert read_confirmation({}) is None


@settings(deadline=None)  # the machine may be busy
@given(
    JSON
    | st.fixed_dictionaries({}, optional=dict.fromkeys(STORED, JSON)).map(lambda d: STORED | d)
    | st.tuples(st.integers(0, 1), st.sampled_from(sorted(STORED["table"][0])), JSON).map(
        lambda x: STORED | {"table": [{**STORED["table"][x[0]], x[1]: x[2]}]}
    )
)
def test_whatever_is_stored_gives_a_result_or_a_remark(value: Any) -> None:
    found = read_confirmation({CONFIRMED_KEY: json.loads(json.dumps(value))})
    if value is None:
        assert found is None
    elif isinstance(found, Remark):
        assert str(found).startswith("confirmed is not what this release stores (")
        assert str(found).endswith("; confirm again by python -m hpo.confirm")
    else:
        assert isinstance(found, Confirmation)
        json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "left_out",
    [("cost", "rounds", "code"), ("confidence", "estimator", "feasible_s")],
)
def test_results_of_older_releases_are_read(left_out: tuple[str, ...]) -> None:
    old = {k: v for k, v in STORED.items() if k not in left_out}
    old["table"] = [{k: v for k, v in row.items() if k != "cost"} for row in old["table"]]
    found = read_confirmation({CONFIRMED_KEY: old})
    assert isinstance(found, Confirmation)
    assert found.title == "best 2 (trial 1)"


def test_each_call_has_an_attribute_of_its_own() -> None:
    study = optuna.create_study()
    call = Call(instance="a/0 bilinear", loss=0.1, standard_error=0.01, seconds=9.5, steps=3,
                cost=1.5, basis="b")  # fmt: skip
    write_confirmed_call(study, "abc", call.instance, call)
    failed = FailedCall(loss=None, seconds=150.2, reason="stopped", basis="b")
    write_confirmed_call(study, "abc", "b/0 bilinear", failed)
    attrs = study.user_attrs
    assert json.dumps(attrs["confirm:abc:a/0 bilinear"]) == (
        '{"loss": 0.1, "standard_error": 0.01, "seconds": 9.5, "steps": 3, "cost": 1.5, '
        '"basis": "b"}'
    )
    assert read_confirmed_call(attrs, "abc", "a/0 bilinear") == call
    assert read_confirmed_call(attrs, "abc", "b/0 bilinear") == failed
    assert read_confirmed_call(attrs, "abc", "c/0 bilinear") is None
    study.set_user_attr("confirm:abc:a/0 bilinear", [1])
    remark = read_confirmed_call(study.user_attrs, "abc", "a/0 bilinear")
    assert str(remark) == "confirm:abc:a/0 bilinear should be an object"
