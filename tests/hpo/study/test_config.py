"""Study files: what is accepted, and how a mistake is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.recipe import Recipe
from hpo.errors import UserError
from hpo.problem.settings import Instances
from hpo.study.config import StudyConfig, load_study_file
from hpo.study.space import sample_values

GOOD = """
name = "s"
storage = "sqlite:///s.db"
[instances]
source = "drawn"
[fixed]
steps = 3
[[start]]
lr = 1e-3
[space.lr]
type = "float"
low = 1e-4
high = 1e-2
log = true
[space.lora]
type = "switch"
[space.lora_rank]
type = "int"
low = 1
high = 8
when = { lora = true }
[space.lora_groups]
type = "choice"
when = { lora = true }
[space.lora_groups.choices]
middle = ["middle"]
most = ["down", "middle", "up"]
"""


def load(tmp_path: Path, text: str) -> StudyConfig:
    path = tmp_path / "study.toml"
    path.write_text(text)
    return load_study_file(str(path))


def test_a_good_file_is_read(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.name == "s"
    assert list(config.space) == ["lr", "lora", "lora_rank", "lora_groups"]
    assert config.fixed == {"steps": 3}
    assert config.start == ({"lr": 1e-3},)


@pytest.mark.parametrize("name", ["runes", "runes-default", "quickstart"])
def test_the_projects_own_studies_are_valid_and_start_with_complete_recipes(name: str) -> None:
    config = load_study_file(name)
    for parameters in config.start:
        wanted = {
            name
            for name, parameter in config.space.items()
            if all(parameters[other] == value for other, value in (parameter.when or {}).items())
        }
        assert set(parameters) == wanted


def test_the_search_starts_from_the_default_recipe() -> None:
    config = load_study_file("runes-default")
    study = optuna.create_study()
    study.enqueue_trial(config.start[0])
    method = config.load_method()
    sampled = sample_values(study.ask(), config.space, config.fixed, method)
    assert sampled == Recipe().to_dict()


@pytest.mark.parametrize("name", ["runes-default", "runes-short"])
def test_the_runes_that_are_kept_out_of_the_search_are_those_to_confirm_on(name: str) -> None:
    config = load_study_file(name)
    head = (
        (Path(__file__).parents[3] / "studies" / "runes-default.toml")
        .read_text()
        .partition("\n\n")[0]
    )
    kept_out = head.partition("kept out")[2]
    for rune in config.confirm.runes:
        assert rune.removeprefix("character") in kept_out
        assert rune not in config.instances.runes
    assert len(config.confirm.runes) == 6


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[fixed]", "[fixt]", "unknown key fixt"),
        ("high = 1e-2", "hihg = 1e-2", "space.lr.high is missing"),
        ("high = 1e-2", 'high = "x"', "space.lr.high is 'x'"),
        ("low = 1e-4", "low = 1", "low is 1 and high is 0.01"),
        ("low = 1e-4", "low = 0", "log scale"),
        ("high = 1e-2", "high = 50.0", "space.lr: lr is 50.0; write a value in [1e-07, 1]"),
        ("steps = 3", "steps = 0", "[fixed] steps is 0"),
        ("steps = 3", "stops = 3", "did you mean 'steps'"),
        ("steps = 3", "lr = 1e-3", "lr is both in [fixed] and in [space]"),
        ("lr = 1e-3", "lr = 0.5", "start.0.lr is 0.5"),
        ("lr = 1e-3", "rl = 0.5", "start.0 names 'rl'"),
        ('"int"\nlow = 1\nhigh = 8', '"float"\nlow = 1\nhigh = 8', 'whole; write type = "int"'),
        ("[space.lora]", "[space.precision]", "space.precision is a switch, and precision is a f"),
        (
            "steps = 3",
            'steps = 3\n[method]\nname = "mine"',
            "method.name: 'mine' is unknown",
        ),
        ("steps = 3", 'steps = 3\n[method]\nname = "no:X"', "'no:X' can't be imported: No module"),
        ("[space.lora]", "[space.lara]", "space.lora_rank.when names 'lora'"),
        (
            "[space.lr]",
            "[space.rl]",
            "space.rl is no field of the method; fields are steps, b",
        ),
        ("when = { lora = true }", "when = { lora = 3 }", "lora can't be 3"),
        ('middle = ["middle"]', 'middle = ["centre"]', "space.lora_groups: lora_groups is"),
        ('source = "drawn"', 'source = "photos"', "instances.source is 'photos'"),
        ('name = "s"', 'name = "s', "is not TOML"),
        ('name = "s"\n', "", "name is missing"),
        ('name = "s"', 'name = "s"\nmargin_s = 200.0', "margin_s is 200 and limit_s 150"),
        ("steps = 3", "seed = 3", "write instances.seeds"),
        ('source = "drawn"', 'source = "drawn"\nseeds = [-1]', "instances.seeds.0 is -1"),
        ('"drawn"', '"drawn"\nalphabet = "Greek"', "alphabet is of Omniglot and source is"),
        ('"drawn"', '"omniglot"\nalphabet = ""', "instances.alphabet is ''"),
        ('"drawn"', '"drawn"\ndrawings = "mine"', 'drawings names a folder and source is "drawn"'),
        ('"drawn"', '"drawings"', "drawings is missing; name the folder"),
        ('source = "drawn"', "train = 5", "instances.source is missing"),
        ('"drawn"', '"drawn"\ntrain = 0', "instances.train is 0"),
        ("[fixed]", "[limits]\ncost = 0.5\n[fixed]", "limits.cost is 0.5"),
        ("[fixed]", "[budget]\ntrials = 0\n[fixed]", "budget.trials is 0"),
        ("[fixed]", "[budget]\nhours = 1\n[fixed]", "unknown key budget.hours"),
        ("[fixed]", "[recovery]\ngrace_s = 20\n[fixed]", "at least three heartbeats"),
        ("[fixed]", "[sampler]\nhistory = 3\n[fixed]", "sampler.history is 3"),
        ("[fixed]", "[start_from]\nbest = 3\n[fixed]", "start_from.study is missing"),
        ("[fixed]", "[confirm]\nresizes = ['big']\n[fixed]", "confirm.resizes.0 is 'big'"),
        ("[fixed]", "[confirm]\nsplits = [2, 2]\n[fixed]", "confirm: splits names 2 twice"),
        ("[fixed]", "[confirm]\nrune = ['os']\n[fixed]", "unknown key confirm.rune"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in GOOD
    with pytest.raises(UserError) as error:
        load(tmp_path, GOOD.replace(before, after, 1))
    assert message in str(error.value)
    assert "study.toml" in str(error.value)


def test_a_folder_of_drawings_is_a_source_of_its_own(tmp_path: Path) -> None:
    instances = load(tmp_path, GOOD.replace('source = "drawn"', 'drawings = "mine"')).instances
    assert (instances.source, instances.drawings) == ("drawings", Path("mine"))


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"source": "omniglot"}, True),
        ({"source": "omniglot", "alphabet": "Anglo-Saxon_Futhorc", "train": 10}, True),
        ({"source": "omniglot", "train": 9}, False),
        ({"source": "omniglot", "alphabet": "Greek"}, False),
        ({"source": "drawn"}, False),
        ({"drawings": "mine"}, False),
    ],
)
def test_ten_drawings_of_the_futhorc_have_points(table: dict[str, Any], expected: bool) -> None:
    assert Instances.model_validate(table).has_points is expected


def test_the_command_line_names_other_drawings(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.on_drawings(None, None, None) == config
    greek = config.on_drawings("Greek", None, 5)
    assert (greek.instances.source, greek.instances.alphabet) == ("omniglot", "Greek")
    assert greek.instances.train == 5
    mine = greek.on_drawings(None, Path("mine"), None)
    assert (mine.instances.source, mine.instances.drawings) == ("drawings", Path("mine"))
    assert (mine.instances.alphabet, mine.instances.train) == (None, 5)
    assert mine.on_drawings("Greek", None, None) == greek
    assert mine.instances.splits == config.instances.splits
    for asked, message in [
        (("Greek", Path("mine"), None), "--alphabet and --drawings name different drawings"),
        ((None, None, 0), "--train is 0"),
        (("", None, None), "--alphabet is ''"),
    ]:
        with pytest.raises(UserError, match=f"^{message}"):
            config.on_drawings(*asked)


def test_an_unknown_study_lists_those_there_are() -> None:
    with pytest.raises(
        UserError, match=r"no study 'rune'; write one of .*quickstart, replay, runes"
    ):
        load_study_file("rune")


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), name=st.sampled_from(["runes", "quickstart"]))
def test_every_sampled_recipe_is_valid(seed: int, name: str) -> None:
    config = load_study_file(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    sampled = sample_values(trial, config.space, config.fixed, config.load_method())
    recipe = Recipe.from_dict(sampled)
    assert recipe.to_dict() == sampled
    assert ("lora_rank" in trial.params) == bool(trial.params.get("lora"))
    assert bool(recipe.lora_rank) == bool(trial.params.get("lora"))
