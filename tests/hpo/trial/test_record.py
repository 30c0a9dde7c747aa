"""What trials and calls store: written as it always was, and read whatever stands there."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from finetune.recipe import Recipe
from hpo.problem.base import InvalidValuesError
from hpo.problem.recipe_method import RecipeMethod
from hpo.trial.outcome import Ending, Outcome
from hpo.trial.recipe import recipe_of
from hpo.trial.record import (
    Call,
    FailedCall,
    Machine,
    TrialRecord,
    read_call,
    read_trial,
    write_trial,
)
from hpo.trial.run import run_of
from hpo.trial.stored import Remark

METHOD = RecipeMethod()
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
KNOWN = NUMBERS | st.none()
SERIES = st.lists(NUMBERS | st.none(), max_size=16).map(tuple)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just(10**400),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(TEXT, part, max_size=4),
    max_leaves=12,
)
CALLS = st.builds(
    Call,
    instance=TEXT,
    loss=NUMBERS,
    standard_error=KNOWN,
    seconds=KNOWN,
    steps=st.integers() | st.none(),
    curve=SERIES,
    per_t_bin=SERIES,
    picture=TEXT | st.none(),
    cost=KNOWN,
)
RECORDS = st.builds(
    TrialRecord,
    recipe=st.none() | st.dictionaries(TEXT, NUMBERS | TEXT | st.lists(TEXT, max_size=3)),
    machine=st.none() | st.builds(Machine, device=TEXT, threads=st.integers(), torch=TEXT),
    instances=st.lists(CALLS, max_size=3).map(tuple),
    standard_error=KNOWN,
    longest_call_s=KNOWN,
    cost=KNOWN,
    outcome=TEXT | st.none(),
    worker=TEXT | st.none(),
    reason=TEXT,
    traceback=TEXT | st.none(),
)
# As `TrialRecord` names them, with a way to mistake each.
ENTRIES = {
    "recipe": JSON | JSON.map(json.dumps),
    "instances": JSON | st.lists(JSON | st.dictionaries(st.sampled_from(sorted(Call.model_fields)),
                                                        JSON | NUMBERS | TEXT)),
    "attempts": JSON | st.lists(JSON | st.dictionaries(
        st.sampled_from(["worker", "why", "lost", "at"]), JSON | TEXT)),
}  # fmt: skip
ATTRS = st.fixed_dictionaries(
    {}, optional={name: ENTRIES.get(name, JSON) for name in TrialRecord.model_fields}
)


def stored(value: Any) -> Any:
    """As a database gives it back."""
    return json.loads(json.dumps(value))


def trial_with(attrs: dict[str, Any]) -> FrozenTrial:
    return optuna.trial.create_trial(state=TrialState.COMPLETE, value=0.1, user_attrs=attrs)


@settings(deadline=None)  # the machine may be busy
@given(RECORDS)
def test_what_is_written_reads_back(record: TrialRecord) -> None:
    again = read_trial(trial_with(stored(record.to_json())))
    assert again == record
    assert again.remarks == ()


@settings(deadline=None)  # the machine may be busy
@given(ATTRS)
def test_whatever_a_trial_stores_gives_values_or_remarks(attrs: dict[str, Any]) -> None:
    attrs = stored(attrs)
    trial = trial_with(attrs)
    record = read_trial(trial)
    for name, value in attrs.items():
        if value in (None, "", [], {}):
            continue
        read = getattr(record, name)
        remarked = any(r.place.partition(".")[0] == name for r in record.remarks)
        assert read not in (None, "", ()) or remarked or value == "null", (name, value)
    json.dumps(record.to_json(), allow_nan=False)
    run = run_of(trial)
    assert isinstance(run.outcome, str)
    recipe = run.recipe(METHOD)
    assert recipe is None or METHOD.complete(recipe) == recipe
    assert read_trial(trial_with(stored(record.to_json()))).remarks == ()


@settings(deadline=None)  # the machine may be busy
@given(JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(Call.model_fields, JSON)), TEXT)
def test_whatever_a_confirmations_call_is_gives_a_call_or_a_remark(value: Any, label: str) -> None:
    found = read_call(stored(value), label, "confirm:abc:x")
    assert isinstance(found, Call | FailedCall | Remark)
    if isinstance(found, Call):
        assert found.instance == label
        assert math.isfinite(found.loss)
    if isinstance(found, Remark):
        assert str(found).startswith("confirm:abc:x")


def test_the_attributes_are_those_of_published_studies() -> None:
    recipe = Recipe(lr=2e-3).to_dict()
    machine = {"device": "cpu", "threads": 2, "torch": "2.13.0"}
    first = TrialRecord(recipe=recipe, machine=Machine.model_validate(machine))
    assert json.dumps(first.to_json()) == json.dumps(
        {"recipe": json.dumps(recipe), "machine": machine}
    )
    call = Call(
        instance="a/0",
        loss=0.07,
        standard_error=0.003,
        seconds=109.8,
        steps=1700,
        curve=(0.2, 0.1),
        per_t_bin=(0.3, None),
        picture=None,
        cost=1.5,
    )
    other = call.model_copy(update={"loss": 0.09, "standard_error": 0.004, "cost": None})
    after = TrialRecord.of_calls([call, other])
    written = {
        "instance": "a/0",
        "loss": 0.07,
        "standard_error": 0.003,
        "seconds": 109.8,
        "steps": 1700,
        "curve": [0.2, 0.1],
        "per_t_bin": [0.3, None],
        "picture": None,
        "cost": 1.5,
    }
    assert json.dumps(after.to_json()) == json.dumps(
        {
            "instances": [
                written,
                {**written, "loss": 0.09, "standard_error": 0.004, "cost": None},
            ],
            "standard_error": 0.0025,
            "longest_call_s": 109.8,
            "cost": 1.5,
        }
    )
    assert after.mean_loss == pytest.approx(0.08)
    assert TrialRecord.of_ending(Ending(Outcome.COMPLETE), "me").to_json() == {
        "outcome": "complete",
        "worker": "me",
    }
    bug = Ending(Outcome.BUG, "ValueError: x", traceback="Traceback ...")
    assert list(TrialRecord.of_ending(bug, "me").to_json()) == [
        *("outcome", "worker", "reason", "traceback"),
    ]
    failed = FailedCall(loss=None, seconds=3.0, reason="stopped", basis="b")
    assert json.dumps(failed.to_json()) == (
        '{"loss": null, "seconds": 3.0, "reason": "stopped", "basis": "b"}'
    )


def test_the_writer_stores_what_was_set_and_nothing_else() -> None:
    study = optuna.create_study()
    trial = study.ask()
    write_trial(trial, TrialRecord(outcome="complete", cost=None))
    assert study.trials[0].user_attrs == {"outcome": "complete", "cost": None}
    assert read_trial(trial).outcome == "complete"


def test_what_is_no_number_is_not_written() -> None:
    for odd in (math.nan, math.inf):
        with pytest.raises(ValidationError):
            Call(instance="a", loss=odd)


@pytest.mark.parametrize(
    ("instances", "losses", "remarks"),
    [
        ([{"instance": "a", "loss": 0.1}], [0.1], []),
        ([{"instance": "a", "loss": 1}, "x"], [1.0], ["instances.1 should be an object"]),
        ([{"loss": 1}, {"instance": "b", "loss": 2}], [2.0], ["instances.0.instance is missing"]),
        (
            [{"instance": "a", "loss": "low"}],
            [],
            ["instances.0.loss should be a valid number"],
        ),
        (
            # The others of a series would stand in wrong places.
            [{"instance": "a", "loss": 0.1, "curve": [0.2, "x"], "steps": 1.5}],
            [0.1],
            [
                "instances.0.steps should be a valid integer",
                "instances.0.curve should be a list of numbers",
            ],
        ),
        ({"a": 1}, [], ["instances should be a valid tuple"]),
    ],
)
def test_a_trials_calls_are_read_as_far_as_they_are_calls(
    instances: Any, losses: Sequence[float], remarks: Sequence[str]
) -> None:
    record = read_trial(trial_with({"instances": instances}))
    assert [c.loss for c in record.instances] == losses
    assert all(c.curve == () for c in record.instances)
    assert [str(r) for r in record.remarks] == remarks


def test_another_releases_outcome_is_shown_as_it_is() -> None:
    assert run_of(trial_with({"outcome": "hopeless"})).outcome == "hopeless"
    assert run_of(trial_with({})).outcome == "not recorded"
    assert run_of(trial_with({"outcome": 3})).outcome == "not recorded"


@pytest.mark.parametrize("text", [None, "[]", "{", '{"colour": "red"}', '{"lr": []}'])
def test_a_recipe_of_another_release_is_an_error_that_says_so(text: str | None) -> None:
    record = read_trial(trial_with({} if text is None else {"recipe": text}))
    with pytest.raises(InvalidValuesError):
        recipe_of(record, METHOD)
    assert run_of(trial_with({"recipe": text})).recipe(METHOD) is None
