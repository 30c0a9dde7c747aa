"""Instances of a study: those of trials, and those that no trial sees."""

from __future__ import annotations

import tomllib

import pytest

from finetune.data.runes import RuneSource
from hpo.errors import UserError
from hpo.problem.instances import RuneInstance, load_held_out, load_instances
from hpo.study.config import StudyConfig

STUDY = """
name = "tiny"
storage = "sqlite:///tiny.db"
[instances]
source = "drawn"
runes = ["thorn"]
[space.lr]
type = "float"
low = 1e-4
high = 1e-2
"""


def asked(text: str, confirm: str) -> StudyConfig:
    table = tomllib.loads(text)
    table["confirm"] = tomllib.loads(confirm)
    return StudyConfig.model_validate(table)


def held_out(config: StudyConfig, drawn: RuneSource) -> list[RuneInstance]:
    return load_held_out(config.instances, config.confirm, drawn)


def labels(drawn: RuneSource, confirm: str, text: str = STUDY) -> list[str]:
    return [i.label for i in held_out(asked(text, confirm), drawn)]


def test_all_other_runes_are_taken_unless_some_are_named(drawn: RuneSource) -> None:
    found = labels(drawn, "")
    assert sorted(found) == sorted(f"{r}/0 bilinear" for r in drawn.runes if r != "thorn")
    assert labels(drawn, 'runes = ["os"]\nseeds = [4]') == ["os/0/4 bilinear"]


def test_successive_instances_have_other_runes_and_take_turns(drawn: RuneSource) -> None:
    confirm = 'runes = ["os", "ur", "ear"]\nsplits = [0, 1]\nresizes = ["bilinear", "nearest"]'
    found = [label.split() for label in labels(drawn, confirm)]
    assert len({tuple(x) for x in found}) == len(found) == 12
    for turn in range(4):
        block = found[3 * turn : 3 * turn + 3]
        assert [label.partition("/")[0] for label, _ in block] == ["os", "ur", "ear"]
    assert {resize for _, resize in found[:3]} == {"bilinear", "nearest"}


def test_without_other_runes_there_are_other_splits_and_seeds(drawn: RuneSource) -> None:
    every = STUDY.replace('runes = ["thorn"]', "splits = [0, 2]\nseeds = [0]", 1)
    assert set(labels(drawn, "", every)) == {
        f"{rune}/{split}/1 bilinear" for rune in drawn.runes for split in (1, 3)
    }
    assert labels(drawn, 'runes = ["thorn"]\nseeds = [0]') == ["thorn/1 bilinear"]


@pytest.mark.parametrize(
    ("confirm", "message"),
    [
        ('runes = ["os", "thorn"]\nsplits = [1, 0]', "thorn with split 0, which trials were meas"),
        ('runes = ["thorn"]\nsplits = [0]\nseeds = [9]', "does not use, such as [1]"),
        ('runes = ["thron"]', "confirm.runes names 'thron'; drawn has ac, aesc"),
        ('networks = ["unet_9"]', "confirm.networks names 'unet_9'; there are unet_1"),
    ],
)
def test_what_a_trial_has_seen_or_nobody_knows_is_refused(
    drawn: RuneSource, confirm: str, message: str
) -> None:
    with pytest.raises(UserError) as error:
        held_out(asked(STUDY, confirm), drawn)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_instance_is_met_at_each_speed_the_first_speed_first(drawn: RuneSource) -> None:
    """On the same noise; a confirmation is at the study's own speed."""
    text = STUDY.replace('["thorn"]', '["thorn", "os"]\nsplits = [0, 1]\nspeeds = [0.1, 1.0]')
    table = tomllib.loads(text) | {"clock": {"machine": "some.toml"}}
    config = StudyConfig.model_validate(table)
    found = load_instances(config.instances, drawn)
    expected = ["thorn/0", "os/0", "thorn/1", "os/1"]
    assert [i.place for i in found] == 2 * expected
    assert [i.label for i in found] == [f"{x}*0.1" for x in expected] + [f"{x}*1" for x in expected]
    assert [i.speed for i in found] == 4 * [0.1] + 4 * [1.0]
    assert {i.speed for i in held_out(config, drawn)} == {None}
