"""What a reference machine makes of a call, its profile, and the model behind it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo.clock.fit import Timing, check, fit
from hpo.clock.plan import Clock
from hpo.clock.profile import NotTimedError, Profile, load_profile
from hpo.clock.settings import ClockTable
from hpo.errors import UserError
from hpo.problem.base import Values, Workload
from hpo.problem.calibration import calibration_instance, calibration_values
from hpo.problem.recipe_method import RecipeMethod
from hpo.study.config import load_study_file
from hpo.study.space import sample_values
from tests.cheap import CheapInstance, CheapMethod

METHOD, INSTANCE = CheapMethod(), CheapInstance("r", 0, 0)  # a deadline of 10 s
SHIPPED = sorted(Path("studies/machines").resolve().glob("*.toml"))


def profile(startup: float = 1.0, step: float = 0.5, **more: Any) -> Profile:
    return Profile(
        machine={"cores": "2"},
        method="tests.cheap:CheapMethod",
        precision="fp32",
        startup={"call": startup},
        step={"step": step},
        **more,
    )


def values(**more: Any) -> Values:
    return METHOD.complete({"steps": 1000, **more})


@pytest.mark.parametrize(
    ("speed", "steps", "seconds"),
    [(1.0, 18, 10.0), (2.0, 38, 10.0), (0.5, 8, 10.0), (0.15, 1, 10.0), (0.01, 1, 150.0)],
)
def test_a_slower_machine_makes_fewer_steps_in_the_deadline(
    speed: float, steps: int, seconds: float
) -> None:
    plan = Clock(profile(), speed).plan(METHOD, values(), INSTANCE)
    assert (plan.steps, plan.seconds) == (steps, pytest.approx(seconds))
    assert plan.full_speed_s == pytest.approx(1.0 + 0.5 * steps)


def test_values_that_ask_for_fewer_steps_get_them() -> None:
    plan = Clock(profile()).plan(METHOD, values(steps=4), INSTANCE)
    assert (plan.steps, plan.seconds, plan.mark) == (4, 3.0, "steps 4")
    assert Clock(profile(step=0.0)).plan(METHOD, values(steps=7), INSTANCE).steps == 7


def test_an_instance_may_have_a_speed_of_its_own_and_a_caller_the_last_word() -> None:
    clock, half = Clock(profile()), replace(INSTANCE, speed=0.5)
    assert clock.plan(METHOD, values(), half).steps == 8
    assert clock.plan(METHOD, values(), half, speed=1.0).steps == 18


def test_a_look_makes_its_share_of_the_steps_and_a_slower_machine_is_asked_for_all() -> None:
    few, half = values(steps=8), replace(INSTANCE, speed=0.5)
    assert Clock(profile()).plan(METHOD, few, INSTANCE).steps == 8
    assert Clock(profile()).plan(METHOD, few, half).steps == 4
    assert Clock(profile(), speed=0.5).plan(METHOD, few, INSTANCE).steps == 8
    assert Clock(profile()).plan(METHOD, few, half, speed=0.5).steps == 8
    assert Clock(profile()).plan(METHOD, values(steps=1), half).steps == 1


def test_work_that_was_not_timed_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(profile())
    unknown = Workload({"call": 1}, {"step": 1, "juggling": 2}, 10, 10.0)
    monkeypatch.setattr(CheapMethod, "workload", lambda *_: unknown)
    with pytest.raises(NotTimedError, match="no time for 'juggling'; calibrate again"):
        clock.plan(METHOD, values(), INSTANCE)
    bf16 = replace(unknown, step={"step": 1}, precision="bf16")
    monkeypatch.setattr(CheapMethod, "workload", lambda *_: bf16)
    with pytest.raises(NotTimedError, match="precision bf16 was not timed, fp32 was"):
        clock.plan(METHOD, values(), INSTANCE)
    monkeypatch.setattr(CheapMethod, "workload", lambda *_: None)
    with pytest.raises(NotTimedError, match='write machine = "wall"'):
        clock.plan(METHOD, values(), INSTANCE)


def test_a_profile_is_what_its_file_says(tmp_path: Path) -> None:
    found = check(profile(), [timing(2.0, 0.4), timing(1.0, 0.5), timing(1.0, 1.0)])
    written = profile(about='of "two" cores').model_copy(update={"check": found})
    file = tmp_path / "m.toml"
    file.write_text(written.to_toml())
    assert load_profile(str(file)) == written
    # What is said about a machine changes no plan.
    assert written.digest == profile().digest != profile(step=0.51).digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("about = ", "is not TOML"),
        (f"about = {'9' * 5000}", "is not TOML"),
        (f"about = {'[' * 5000}", "has tables in tables without end"),
        ("", "is no machine profile: machine is missing; make one by"),
        (profile().to_toml() + "[x]\n", "is no machine profile: unknown key x; remove it"),
        (profile().to_toml().replace("0.5", "-0.5"), "step.step is -0.5; write 0 or more"),
    ],
)
def test_what_is_no_profile_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "m.toml"
    file.write_text(text)
    with pytest.raises(UserError) as refused:
        load_profile(str(file))
    assert words in str(refused.value) and str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_machine_is_told_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies/machines").mkdir(parents=True)
    (tmp_path / "studies/machines/mine.toml").write_text(profile().to_toml())
    with pytest.raises(UserError, match=r"no machine 'yours'; write one of wall, .*mine"):
        load_profile("yours")
    with pytest.raises(UserError, match=r"yours\.toml: no such machine profile"):
        load_profile("./yours.toml")
    with pytest.raises(UserError, match=r"machine nnn.*\.\.\.: File name too long; write a name"):
        load_profile("n" * 5000)
    clock = ClockTable(machine="mine", speed=0.5).load("tests.cheap:CheapMethod")
    assert clock is not None and clock.mark == f"{profile().digest} at speed 0.5"
    with pytest.raises(UserError, match=r"timed with method 'tests\.cheap:CheapMethod' and not"):
        ClockTable(machine="mine").load("recipe")
    assert ClockTable().load("recipe") is None


def timing(startup_s: float, step_s: float) -> Timing:
    return Timing(Workload({"call": 1}, {"step": 1}, 10, 10.0), startup_s, step_s)


def test_errors_are_relative_to_what_was_measured() -> None:
    found = check(profile(), [timing(2.0, 0.4), timing(1.0, 0.5), timing(1.0, 1.0)])
    assert (found.step_median_error, found.step_largest_error) == (0.25, 0.5)
    assert (found.startup_median_error, found.startup_largest_error) == (0.0, 0.5)
    assert found.recipes == 3


def test_the_model_finds_the_seconds_of_a_unit() -> None:
    chance = random.Random(0)
    true = {"step": 0.02, "images": 1e-3, "idle": 0.0, "gradients": 5e-4}
    amounts = [
        {
            "step": 1.0,
            "images": b,
            "idle": chance.random(),
            "gradients": b * (chance.random() < 0.5),
        }
        for b in (4.0, 8.0, 16.0, 32.0) * 8
    ]
    seconds = [sum(true[name] * amount for name, amount in one.items()) for one in amounts]
    exact = fit(amounts, seconds)
    assert exact == pytest.approx(true, rel=1e-3, abs=1e-9)
    noisy = fit(amounts, [s * chance.gauss(1, 0.05) for s in seconds])
    assert all(value >= 0 for value in noisy.values())
    predicted = [sum(noisy[name] * amount for name, amount in one.items()) for one in amounts]
    assert predicted == pytest.approx(seconds, rel=0.05)


# The profiles that are shipped


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_profile_predicts_recipes_that_it_was_not_fitted_to(path: Path) -> None:
    found = load_profile(str(path))
    assert found.method == "recipe" and found.about
    assert found.check is not None and found.check.recipes >= 24
    assert found.check.step_median_error < 0.1 and found.check.startup_median_error < 0.1


def test_profiles_are_shipped_with_bf16_units_and_without() -> None:
    assert [load_profile(str(path)).precision for path in SHIPPED] == ["bf16", "fp32"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("study", ["runes", "runes-default", "runes-short", "quickstart"])
def test_a_shipped_profile_plans_all_of_a_studys_space(path: Path, study: str) -> None:
    config, method = load_study_file(study), RecipeMethod()
    clock, instance = Clock(load_profile(str(path))), calibration_instance(0)
    trials = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    plans = [
        clock.plan(
            method, sample_values(trials.ask(), config.space, config.fixed, method), instance
        )
        for _ in range(30)
    ]
    assert all(plan.steps >= 1 and 0 < plan.seconds <= 120 for plan in plans)


def test_what_is_timed_for_a_profile_is_everything_that_a_recipe_may_ask_for() -> None:
    """Each kind of work has a time, and no two kinds always come together."""
    method, asked = RecipeMethod(), calibration_values(72, "fp32")
    works = [method.workload(v, calibration_instance(i)) for i, v in enumerate(asked)]
    for part in ("startup", "step"):
        amounts = [getattr(work, part) for work in works]
        names = sorted({name for one in amounts for name in one})
        columns = {name: [one.get(name, 0.0) for one in amounts] for name in names}
        unique = {tuple(column) for column in columns.values()}
        assert len(unique) == len(names), part
    assert len({str(sorted(v.items())) for v in asked}) > 60
    fewer_drawings = {len(calibration_instance(i).split.train) for i in range(4)}
    assert fewer_drawings == {5, 10, 15}
