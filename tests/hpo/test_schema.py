"""The JSON schema of study files: the files that come with the package keep it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from hpo.schema import main

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    from hpo.study.schema import study_schema

    return study_schema()


def test_it_is_a_schema_that_explains_each_key(
    schema: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Draft202012Validator.check_schema(schema)
    assert main([]) == 0
    assert json.loads(capsys.readouterr().out) == schema
    assert schema["properties"]["limit_s"]["description"].startswith("A call that takes")
    assert schema["$defs"]["Budget"]["properties"]["trials"]["description"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_is_shipped_keeps_it(path: Path, schema: dict[str, Any]) -> None:
    Draft202012Validator(schema).validate(tomllib.loads(path.read_text("utf-8")))


@pytest.mark.parametrize(
    "change",
    [{"limits_s": 1}, {"limit_s": -1}, {"space": {}}, {"sampler": {"startup_trials": "x"}}],
)
def test_a_mistake_does_not(change: dict[str, Any], schema: dict[str, Any]) -> None:
    file = tomllib.loads(STUDIES[0].read_text("utf-8"))
    assert not Draft202012Validator(schema).is_valid(file | change)
