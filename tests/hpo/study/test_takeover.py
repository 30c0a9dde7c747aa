"""A study that differs in the space alone begins with what the other one has measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from hpo.artifacts.uploads import Gallery
from hpo.clock.profile import Profile
from hpo.errors import UserError
from hpo.init import InitOptions, init
from hpo.storage.open import load_study, open_storage
from hpo.study.config import load_study_file
from hpo.study.create import join
from hpo.study.inclusion import included, looks_of
from hpo.study.manifest import make_manifest
from hpo.study.space import Parameter, sample_values
from hpo.study.takeover import parameters_for
from hpo.trial.calls import CallKeys, KeptCalls
from hpo.trial.record import read_trial
from hpo.worker.display import Display
from hpo.worker.loop import Loop
from hpo.worker.objective import Objective
from hpo.worker.visuals import Visuals
from tests.cheap import CHEAP_TOML, CheapMethod

OLD = f"""
name = "old"
storage = "sqlite:///unused.db"
{CHEAP_TOML}
[instances]
source = "drawn"
runes = ["r"]
seeds = [0, 1]
[pruner]
name = "median"
startup_trials = 2
[[start]]
lr = 1e-2
square = false
[[start]]
lr = 2e-3
square = true
[[start]]
lr = 1e-1
square = false
[space.lr]
type = "float"
low = 1e-3
high = 1e-1
log = true
[space.square]
type = "switch"
"""
NEW = OLD.replace('name = "old"', 'name = "new"').replace("startup_trials = 2\n", "")
NEW = NEW[: NEW.index("[[start]]")] + '[start_from]\nstudy = "old"\ntrials = "all"\n'
OLD_SPACE = OLD[OLD.index("[space.lr]") :]
SPACE = """
[fixed]
square = false
[space.lr]
type = "float"
low = 5e-3
high = 1.0
[space.shape]
type = "choice"
choices = ["pen", "direct"]
"""


def work(url: str, file: Path, trials: int, place: str = "none") -> optuna.Study:
    """Run trials of a study, as a worker does."""
    config = load_study_file(str(file))
    problem, method = config.load_problem(None), config.load_method()
    manifest = make_manifest(config, problem)
    study, storage = join(config, url, manifest, 1)
    kept = KeptCalls(storage, study._study_id, CallKeys(method, problem, manifest))
    visuals = Visuals(Gallery(place), problem)
    budget = config.budget.model_copy(update={"trials": trials})
    with Display(config.name, trials, 0) as display:
        objective = Objective(config, problem, visuals, kept=kept)
        Loop(study, storage, objective, budget, config.recovery, display).work()
    return study


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / f"{text.split('name = ')[1].split()[0].strip(chr(34))}.toml"
        path.write_text(text)
        return path

    return write


Write = Callable[[str], Path]


def facts(trial: FrozenTrial) -> dict[str, Any]:
    """What a takeover leaves as it is."""
    record = read_trial(trial)
    return {
        "state": trial.state,
        "values": trial.values,
        "reports": trial.intermediate_values,
        "started": trial.datetime_start,
        "ended": trial.datetime_complete,
        "recipe": record.recipe,
        "calls": [c.model_copy(update={"picture": None}) for c in record.instances],
        "outcome": record.outcome,
        "constraints": trial.constraints,
    }


def test_trials_and_calls_inside_the_new_space_are_taken_and_the_others_counted(
    url: str, write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = work(url, write(OLD), 3, str(tmp_path / "pictures"))
    states = [t.state for t in old.trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED]
    caplog.set_level("INFO", logger="hpo")
    line = init(InitOptions(study=str(write(NEW + SPACE)), storage=url, wait=0.0))
    assert line.endswith("0 trials queued, 0 running, 2 finished")
    said = "taken over from study old: 2 trials and 3 calls; outside of this space: 1 trial"
    assert said in caplog.text
    storage = open_storage(url)
    new = load_study(storage, "new")
    first, third = old.trials[0], old.trials[2]
    assert [facts(t) for t in new.trials] == [facts(first), facts(third)]
    assert [t.number for t in new.trials] == [0, 1]
    assert [t.params for t in new.trials] == [
        {"lr": 1e-2, "shape": "pen"},
        {"lr": 1e-1, "shape": "pen"},
    ]
    assert [t.user_attrs["taken_from"] for t in new.trials] == ["old/0", "old/2"]
    assert read_trial(first).instances[0].picture is not None
    # Files stay with the study that made them.
    for trial in new.trials:
        assert read_trial(trial).instances[0].picture is None
        assert not [key for key in trial.system_attrs if key.startswith("artifacts:")]
    assert sorted(
        r.trial for r in storage.calls_of_study(new._study_id) if r.trial is not None
    ) == [0, 0, 1]
    caplog.clear()
    assert init(InitOptions(study=str(write(NEW + SPACE)), storage=url, wait=0.0)) == line
    assert "taken over" not in caplog.text

    # The search goes on, and its budget is met with those that were taken.
    work(url, write(NEW + SPACE), 4)
    assert [t.number for t in load_study(open_storage(url), "new").trials] == [0, 1, 2, 3]


def test_a_study_of_another_database_is_taken_over_too(
    new_database: Callable[[str], str], write: Write
) -> None:
    there, here = new_database("sqlite"), new_database("postgresql")
    work(there, write(OLD), 3)
    text = NEW.replace('trials = "all"', f'trials = "all"\nstorage = "{there}"')
    init(InitOptions(study=str(write(text + SPACE)), storage=here, wait=0.0))
    storage = open_storage(here)
    study = load_study(storage, "new")
    assert len(study.trials) == 2
    kept = storage.calls_of_study(study._study_id)
    assert len(kept) == 3
    study.enqueue_trial({"lr": 1e-2, "shape": "pen"})
    again = work(here, write(text + SPACE), 3).trials[2]
    assert [c.kept for c in read_trial(again).instances] == [True, True]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seeds = [0, 1]", "seeds = [0]"), "study old was made with other instances"),
        (("seeds = [0, 1]", "seeds = [1, 2]"), "study old was made with other instances"),
        (("[pruner]", "[estimator]\nstrata = 7\n[pruner]"), "with other estimator"),
        (('study = "old"', 'study = "none"'), "has no study 'none'; it has: old"),
    ],
)
def test_what_measured_something_else_is_refused_and_nothing_is_made(
    new_database: Callable[[str], str], write: Write, change: tuple[str, str], words: str
) -> None:
    url = new_database("sqlite")
    work(url, write(OLD), 1)
    text = (NEW + SPACE).replace(*change)
    with pytest.raises(UserError) as error:
        init(InitOptions(study=str(write(text)), storage=url, wait=0.0))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert [s.study_name for s in open_storage(url).get_all_studies()] == ["old"]


CLOCK = """
[clock]
machine = "{machine}"
speed = {speed}
[instances]
"""


def test_a_study_with_more_instances_begins_with_the_calls_of_a_smaller_one(
    url: str, write: Write, tmp_path: Path
) -> None:
    """First looks at a tenth of the speed, on one seed; then both seeds, at full speed as well."""
    machine = tmp_path / "machine.toml"
    units = {"startup": {"call": 0.0}, "step": {"step": 0.01}}
    method = "tests.cheap:CheapMethod"
    machine.write_text(Profile(machine={}, method=method, precision="fp32", **units).to_toml())

    def text(file: str, speed: float, instances: str) -> str:
        clock = CLOCK.format(machine=machine, speed=speed)
        return file.replace("[instances]", clock).replace("seeds = [0, 1]", instances)

    old = work(url, write(text(OLD, 1.0, "seeds = [0]\nspeeds = [0.1]")), 3)
    assert [t.state for t in old.trials] == [TrialState.COMPLETE] * 3
    file = write(text(NEW, 1.0, "seeds = [1, 0]\nspeeds = [0.1, 1.0]") + OLD_SPACE)
    init(InitOptions(study=str(file), storage=url, wait=0.0))
    taken = load_study(open_storage(url), "new").trials
    assert [t.state for t in taken] == [TrialState.PRUNED] * 3
    # The first instance here is another seed's; the call on the second is kept for later.
    assert [t.intermediate_values for t in taken] == [{}] * 3

    file.write_text(
        file.read_text().replace('name = "new"', 'name = "newer"').replace("1, 0", "0, 1")
    )
    init(InitOptions(study=str(file), storage=url, wait=0.0))
    storage = open_storage(url)
    study = load_study(storage, "newer")
    for trial, before in zip(study.trials, old.trials, strict=True):
        record = read_trial(trial)
        assert trial.intermediate_values == {1: before.value} == {1: trial.value}
        assert [c.instance for c in record.instances] == ["r/0*0.1"]
        assert (record.outcome, record.reason) == ("pruned", "taken over with 1 of 4 instances")
        assert trial.params == before.params and trial.constraints == before.constraints
        assert record.looks == 2
        assert record.longest_call_s == read_trial(before).longest_call_s

    # Whoever tries one of its recipes again makes the other calls alone.
    study.enqueue_trial(study.trials[0].params)
    again = read_trial(work(url, file, 4).trials[3])
    assert [(c.instance, c.kept) for c in again.instances] == [
        ("r/0*0.1", True),
        ("r/0/1*0.1", False),
        ("r/0*1", False),
        ("r/0/1*1", False),
    ]


def test_a_look_is_a_share_of_the_steps_and_a_slower_machine_is_not() -> None:
    networks = {"networks": "n:digest"}
    mine = {"clock": "m at speed 1", "instances": "bilinear r/0*0.1@n r/0*1@n", **networks}
    looks = {"clock": "m at speed 1", "instances": "bilinear r/0*0.1@n", **networks}
    full = {"clock": "m at speed 1", "instances": "bilinear r/0@n", **networks}
    slower = {"clock": "m at speed 0.1", "instances": "bilinear r/0@n", **networks}
    assert included(looks, mine) == {"r/0*0.1": "r/0*0.1"}
    assert included(full, mine) == {"r/0": "r/0*1"}
    assert included(slower, mine) is None
    assert included(slower, slower) == {"r/0": "r/0"}
    assert [looks_of(m) for m in (mine, looks, full, slower)] == [1, 0, 0, 0]


METHOD = CheapMethod()
TABLES: dict[str, dict[str, Any]] = {
    "lr": {"type": "float", "low": 1e-3, "high": 1e-1},
    "steps": {"type": "int", "low": 1, "high": 8},
    "parts": {"type": "choice", "choices": {"few": ["a"], "both": ["a", "b"]}},
    "square": {"type": "choice", "choices": [True, False]},
    "long": {"type": "switch"},
}


def space(**tables: Any) -> dict[str, Parameter]:
    found: dict[str, Parameter] = TypeAdapter(dict[str, Parameter]).validate_python(tables)
    return found


@pytest.mark.parametrize(
    ("values", "params", "tables", "fixed", "expected"),
    [
        ({"lr": 0.01}, {}, {"lr": TABLES["lr"]}, {}, {"lr": 0.01}),
        ({"lr": 0.5}, {}, {"lr": TABLES["lr"]}, {}, None),
        ({"lr": 0.01, "steps": 5}, {}, {"lr": TABLES["lr"]}, {}, None),
        ({"lr": 0.01, "steps": 5}, {}, {"lr": TABLES["lr"]}, {"steps": 5}, {"lr": 0.01}),
        ({"steps": 9}, {}, {"steps": TABLES["steps"]}, {}, None),
        ({"parts": ["a"]}, {}, {"parts": TABLES["parts"]}, {}, {"parts": "few"}),
        ({}, {}, {"parts": TABLES["parts"]}, {}, {"parts": "both"}),
        ({"parts": ["c"]}, {}, {"parts": TABLES["parts"]}, {}, None),
        ({"square": True}, {}, {"square": TABLES["square"]}, {}, {"square": True}),
        # A switch that the trial did not have is as it must have been.
        (
            {"steps": 5},
            {},
            {"long": TABLES["long"], "steps": {**TABLES["steps"], "when": {"long": True}}},
            {},
            {"long": True, "steps": 5},
        ),
        (
            {},
            {},
            {"long": TABLES["long"], "steps": {**TABLES["steps"], "when": {"long": True}}},
            {},
            {"long": False},
        ),
        (
            {},
            {"long": True},
            {"long": TABLES["long"], "steps": {**TABLES["steps"], "when": {"long": True}}},
            {},
            {"long": True, "steps": 2},
        ),
    ],
)
def test_parameters_are_those_by_which_a_trial_would_run_the_recipe(
    values: dict[str, Any],
    params: dict[str, Any],
    tables: dict[str, Any],
    fixed: dict[str, Any],
    expected: dict[str, Any] | None,
) -> None:
    recipe, here = METHOD.complete(values), space(**tables)
    found = parameters_for(recipe, params, here, fixed, METHOD)
    assert found == expected
    if found is not None:
        trial = optuna.trial.FixedTrial(found)
        assert sample_values(trial, here, fixed, METHOD) == recipe  # type: ignore[arg-type]
        for name, value in found.items():
            assert trial.distributions[name] == here[name].distribution()
            assert json.dumps(value)
