"""A worker that would measure something else may not join."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
import torch

from finetune.data.runes import RuneSource
from hpo.confirm.run import _check_same_measure as to_confirm
from hpo.errors import UserError
from hpo.export.__main__ import _check_same_measure as to_export
from hpo.problem import fingerprint
from hpo.problem.runes import RuneProblem
from hpo.study.config import StudyConfig
from hpo.study.manifest import MANIFEST_KEY, check_manifest, make_manifest, read_manifest
from tests.hpo.configs import make_config

Check = Callable[[optuna.Study, dict[str, str]], None]

INSTANCES = {"source": "drawn", "runes": ["thorn", "os"]}


def manifest(source: RuneSource, **changes: Any) -> dict[str, str]:
    config = make_config(**{"instances": INSTANCES, **changes})
    return make_manifest(config, problem_of(config, source))


def problem_of(config: StudyConfig, source: RuneSource) -> RuneProblem:
    problem = config.load_problem(None)
    assert isinstance(problem, RuneProblem)
    problem.source = source
    return problem


def made_with(recorded: dict[str, str]) -> optuna.Study:
    study = optuna.create_study(study_name="s")
    study.set_user_attr(MANIFEST_KEY, recorded)
    return study


def test_the_same_study_is_joined(drawn: RuneSource) -> None:
    config = make_config(instances=INSTANCES)
    check_manifest(made_with(manifest(drawn)), make_manifest(config, config.load_problem(None)))


@pytest.mark.parametrize(
    ("changes", "entry"),
    [
        ({"instances": {"source": "drawn", "runes": ["os", "thorn"]}}, "instances"),
        ({"instances": {**INSTANCES, "splits": [1]}}, "instances"),
        ({"instances": {**INSTANCES, "seeds": [7]}}, "instances"),
        ({"instances": {**INSTANCES, "train": 5}}, "data"),
        ({"limit_s": 99.0}, "limit"),
        ({"margin_s": 9.0}, "limit"),
        ({"limits": {"cost": 2.0}}, "cost"),
        ({"instances": {**INSTANCES, "resize": "nearest"}}, "instances"),
        ({"estimator": {"strata": 3}}, "estimator"),
        ({"fixed": {"steps": 7}}, "space"),
        ({"space": {"lr": {"type": "float", "low": 1e-4, "high": 2e-2}}}, "space"),
    ],
)
def test_another_study_file_is_refused(
    drawn: RuneSource, changes: dict[str, Any], entry: str
) -> None:
    study = made_with(manifest(drawn))
    with pytest.raises(UserError, match=f"study s was made with other {entry} .*another name"):
        check_manifest(study, manifest(drawn, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": {"trials": 3}, "sampler": {"name": "random"}, "start": [{"lr": 1e-3}]},
        {"confirm": {"runes": ["os"], "splits": [1]}},
    ],
)
def test_what_no_loss_depends_on_may_change(drawn: RuneSource, changes: dict[str, Any]) -> None:
    assert manifest(drawn, **changes) == manifest(drawn)


def test_a_bound_on_the_cost_is_in_the_manifest_only_where_it_is_set(drawn: RuneSource) -> None:
    bounded = manifest(drawn, limits={"cost": 2.0})
    assert "cost" not in manifest(drawn)
    check_manifest(made_with(bounded), bounded)
    with pytest.raises(UserError, match="made with other cost"):
        check_manifest(made_with(bounded), manifest(drawn))


def test_half_of_the_drawings_is_the_default(drawn: RuneSource) -> None:
    """Studies of before, whose manifests say nothing about the split, go on."""
    assert manifest(drawn, instances={**INSTANCES, "train": 10}) == manifest(drawn)
    assert manifest(drawn)["data"] == f"drawn {drawn.digest[:12]}"


def test_one_pixel_of_the_data_counts(drawn: RuneSource) -> None:
    bitmaps = {name: b.clone() for name, b in drawn.bitmaps.items()}
    bitmaps["ear"][3, 50, 50] ^= 1
    assert manifest(replace(drawn, bitmaps=bitmaps))["data"] != manifest(drawn)["data"]


def test_one_weight_of_a_network_counts(drawn: RuneSource) -> None:
    config = make_config(instances=INSTANCES)
    problem = problem_of(config, drawn)
    before = make_manifest(config, problem)
    with torch.no_grad():
        problem.instances()[0].pretrained.conv_out.bias[0] += 1e-3  # type: ignore[union-attr, operator, index]
    assert make_manifest(config, problem)["networks"] != before["networks"]


def test_the_code_that_measures_counts(drawn: RuneSource, monkeypatch: pytest.MonkeyPatch) -> None:
    before = manifest(drawn)
    monkeypatch.setattr(fingerprint, "_ENTRIES", ("flow",))
    assert manifest(drawn)["code"] != before["code"]


def test_a_study_of_unknown_origin_is_not_joined(drawn: RuneSource) -> None:
    with pytest.raises(UserError, match="has no manifest"):
        check_manifest(optuna.create_study(), manifest(drawn))


def test_words_do_not_count_and_everything_else_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A study goes on after a comment is mended, and not after a number is."""
    source = (
        '"""What it is."""\n\n'
        "RATE = 0.1  # a share\n\n\n"
        "class Thing:\n"
        '    """A thing.\n\n    Of two lines.\n    """\n\n'
        "    def give(self) -> str:\n"
        '        """What it gives."""\n'
        '        return "#1"\n'
    )

    def code(text: str) -> str:
        monkeypatch.setattr(fingerprint, "needed_modules", lambda *entries: {"thing": text})
        return fingerprint.code_digest()

    original = code(source)
    for old, new in (
        ("a share", "in percent"),
        ("What it is.", "Another\nstory."),
        ("    Of two lines.\n", ""),
        ("What it gives.", "It gives."),
        ("\n\n\n", "\n\n# A class.\n\n"),
    ):
        assert old in source
        assert code(source.replace(old, new)) == original
    for old, new in (("0.1", "0.2"), ('"#1"', '"#2"'), ("give(self)", "gives(self)")):
        assert old in source
        assert code(source.replace(old, new)) != original
    assert code(source + '"a string that is no docstring"\n') != original


@pytest.mark.parametrize("stored", [["code"], "code", 7, True, {}])
@pytest.mark.parametrize("check", [check_manifest, to_confirm, to_export])
def test_what_another_program_stored_as_manifest_is_none(check: Check, stored: Any) -> None:
    study = optuna.create_study(study_name="s")
    study.set_user_attr(MANIFEST_KEY, stored)
    assert read_manifest(study.user_attrs) == {}
    with pytest.raises(UserError, match="has no manifest"):
        check(study, {"code": "this"})
