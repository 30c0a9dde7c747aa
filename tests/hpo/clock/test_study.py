"""Studies by a reference clock: plans, limits, manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from hpo.clock.profile import Profile
from hpo.errors import UserError
from hpo.problem.measure import HUNG
from hpo.process.logging import start_log
from hpo.storage.open import load_study, open_storage
from hpo.study.config import Budget, Recovery, StudyConfig, load_study_file
from hpo.study.create import create
from hpo.study.manifest import make_manifest
from hpo.trial.outcome import Outcome
from hpo.trial.ranking import best_trials
from hpo.trial.record import read_trial
from hpo.worker.display import Display
from hpo.worker.loop import Loop
from hpo.worker.objective import Objective
from tests.cheap import CHEAP, CheapMethod

# In ten seconds 20 steps at speed 1.
PROFILE = Profile(
    machine={},
    method="tests.cheap:CheapMethod",
    precision="fp32",
    startup={"call": 0.0},
    step={"step": 0.5},
)


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Any]:
    """Of a study by the clock of a machine of two steps a second."""
    machine = tmp_path / "machine.toml"
    machine.write_text(PROFILE.to_toml())
    return {
        **CHEAP,
        "name": "s",
        "storage": f"sqlite:///{tmp_path}/s.db",
        "limit_s": 12.0,
        "margin_s": 1.0,
        "clock": {"machine": str(machine)},
        "instances": {"source": "drawn", "runes": ["a", "b"]},
        "fixed": {"steps": 100},
        "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
        "pruner": {"name": "none"},
    }


def run(table: dict[str, Any], *lrs: float) -> list[FrozenTrial]:
    config = StudyConfig.model_validate(table)
    storage = open_storage(config.storage, worker="me")
    storage.create_study("s", {}, [{"lr": lr} for lr in lrs])
    study = load_study(storage, "s")
    with Display("s", None, 0) as display:
        Loop(
            study=study,
            storage=storage,
            run=Objective(config, config.load_problem(None)),
            budget=Budget(trials=len(lrs)),
            recovery=Recovery(),
            display=display,
            feasible_s=config.feasible_s,
        ).work()
    return study.get_trials()


def test_a_trial_makes_the_steps_of_the_reference_machine(table: dict[str, Any]) -> None:
    (trial,) = run(table, 0.01)
    record = read_trial(trial)
    assert [(c.steps, c.steps_wanted) for c in record.instances] == [(20, 20)] * 2
    assert record.predicted_s == 10.0 and record.longest_call_s == 1.0
    assert trial.constraints["seconds over the limit"] == pytest.approx(10 - 11)
    assert best_trials([trial]) == [trial]
    assert record.recipe is not None and record.recipe["steps"] == 100  # its own


def test_instances_may_differ_in_speed(table: dict[str, Any]) -> None:
    table["instances"]["speeds"] = [0.1, 1.0]
    table["clock"]["speed"] = 0.5  # that of instances without one
    (trial,) = run(table, 0.01)
    calls = read_trial(trial).instances
    assert [c.instance for c in calls] == ["a/0*0.1", "b/0*0.1", "a/0*1", "b/0*1"]
    assert [c.steps for c in calls] == [2, 2, 20, 20]


def test_a_call_that_is_too_long_there_is_never_made(
    table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def behave(values: dict[str, Any], instance: object) -> tuple[float, float]:
        made.append(instance)
        return 1.0, 1.0

    monkeypatch.setattr(CheapMethod, "behave", staticmethod(behave))
    (trial,) = run(table | {"margin_s": 3.0}, 0.01)
    record = read_trial(trial)
    assert not made and not record.instances
    assert record.outcome == Outcome.INFEASIBLE
    assert record.reason == "a call would take 10.0 s on the reference machine; 9 are allowed"
    assert trial.constraints["seconds over the limit"] == pytest.approx(1.0)


def test_a_slow_machine_makes_no_recipe_infeasible_but_a_hung_call_ends(
    table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    took = {0.01: HUNG * 12.0 - 1, 0.02: HUNG * 12.0 + 1}
    monkeypatch.setattr(CheapMethod, "behave", staticmethod(lambda v, _: (1.0, took[v["lr"]])))
    slow, hung = run(table, *took)
    assert read_trial(slow).outcome == Outcome.COMPLETE and best_trials([slow]) == [slow]
    record = read_trial(hung)
    assert record.outcome == Outcome.BUG and hung.constraints.get("failed") is None
    assert "20 times the limit of 12 s" in record.reason


def test_a_worker_says_that_its_machine_is_another(
    table: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start_log("me")
    monkeypatch.setattr(CheapMethod, "behave", staticmethod(lambda *_: (1.0, 30.0)))
    run(table, 0.01, 0.02, 0.03)
    words = "calls take 3 times as long here as on the reference machine"
    assert capsys.readouterr().err.count(words) == 1
    monkeypatch.setattr(CheapMethod, "behave", staticmethod(lambda *_: (1.0, 12.0)))
    run(table | {"storage": table["storage"].replace("s.db", "t.db")}, 0.01, 0.02)
    assert words not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"clock": {"speed": 0.5}}, "speed is 0.5 and machine is wall"),
        ({"clock": {"machine": "x", "speed": 0}}, "clock.speed is 0"),
        ({"clock": {"machine": ""}}, "clock.machine is ''"),
        ({"instances": {"source": "drawn", "speeds": [1]}}, "clock.machine is wall"),
        ({"instances": {"source": "drawn", "speeds": [-1]}}, "instances.speeds.0 is -1"),
    ],
)
def test_a_clock_that_can_not_be_is_refused_in_one_line(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    tables = {"instances": {"source": "drawn"}, **changed}
    lines = ['name = "s"', 'storage = "sqlite:///s.db"']
    for name, entries in tables.items():
        lines += [f"[{name}]", *(f"{k} = {v!r}".replace("'", '"') for k, v in entries.items())]
    lines += ["[space.lr]", 'type = "float"', "low = 0.001", "high = 0.1"]
    (tmp_path / "s.toml").write_text("\n".join(lines))
    with pytest.raises(UserError) as refused:
        load_study_file(str(tmp_path / "s.toml"))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_machine_and_speed_are_part_of_the_manifest_and_wall_is_not(
    table: dict[str, Any], tmp_path: Path
) -> None:
    def manifest(**clock: Any) -> dict[str, str]:
        config = StudyConfig.model_validate(table | {"clock": clock})
        return make_manifest(config, config.load_problem(None))

    machine = table["clock"]["machine"]
    wall, full = manifest(), manifest(machine=machine)
    assert "clock" not in wall and full == wall | {"clock": f"{PROFILE.digest} at speed 1"}
    config = StudyConfig.model_validate(table)
    create(config, config.storage, full)
    for other in (wall, manifest(machine=machine, speed=0.5)):
        with pytest.raises(UserError, match=r"was made with other clock .*; write that machine"):
            create(config, config.storage, other)
    # The same times in another file, with other words, are the same machine.
    copy = tmp_path / "copy.toml"
    copy.write_text(PROFILE.model_copy(update={"about": "a copy"}).to_toml())
    create(config, config.storage, manifest(machine=str(copy)))
