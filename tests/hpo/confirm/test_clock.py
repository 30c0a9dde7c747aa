"""Confirmations by a reference clock, by wall clock beside its plan, and at other speeds."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpo.clock.profile import Profile
from hpo.confirm.__main__ import main
from hpo.errors import UserError
from hpo.problem.base import Called, OnStep, Values
from hpo.storage.open import load_study, open_storage
from hpo.study.config import load_study_file
from hpo.study.confirmation import CONFIRMED_KEY
from hpo.study.create import create
from hpo.study.manifest import make_manifest
from tests.cheap import CHEAP_TOML, CheapInstance, CheapMethod

STUDY = f"""
name = "tiny"
storage = "sqlite:///tiny.db"
limit_s = 12.0
margin_s = 1.0
{CHEAP_TOML}
[instances]
source = "drawn"
runes = ["thorn"]
[confirm]
runes = ["os", "ur", "ear"]
[fixed]
steps = 100
[space.lr]
type = "float"
low = 1e-4
high = 1e-2
log = true
"""
# In the cheap method's ten seconds 20 steps.
MACHINE = Profile(
    machine={},
    method="tests.cheap:CheapMethod",
    precision="fp32",
    startup={"call": 0.0},
    step={"step": 0.5},
)
CLOCK = '[clock]\nmachine = "./machine.toml"\n'
LR = optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
Made = list[tuple[str, int]]  # of each call the instance and the steps


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.delenv("RUNES_STORAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    hook = sys.unraisablehook
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    sys.unraisablehook = hook
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Calls take half a second a step by their own clock; those that are made are listed."""
    found: Made = []
    call = CheapMethod.call

    def counting(
        self: CheapMethod,
        values: Values,
        instances: Any,
        on_step: OnStep,
        steps: Any = None,
    ) -> list[Called]:
        called = call(self, values, instances, on_step, steps)
        found.extend((i.label, c.steps) for i, c in zip(instances, called, strict=True))
        return called

    monkeypatch.setattr(CheapMethod, "call", counting)
    monkeypatch.setattr(CheapMethod, "behave", staticmethod(lambda v, _: (100 * v["lr"], 9.0)))
    return found


def searched(clock: str) -> None:
    """A study of a recipe that is better than the default one."""
    Path("machine.toml").write_text(MACHINE.to_toml())
    Path("tiny.toml").write_text(STUDY + clock)
    config = load_study_file("./tiny.toml")
    _, study = create(config, config.storage, make_manifest(config, config.load_problem(None)))
    recipe = config.load_method().complete({**config.fixed, "lr": 1e-3})
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.COMPLETE,
            value=0.5,
            params={"lr": 1e-3},
            distributions={"lr": LR},
            user_attrs={
                "recipe": json.dumps(recipe),
                "outcome": "complete",
                "instances": [{"instance": "thorn/0", "loss": 0.5}],
            },
        )
    )


def run(*arguments: str) -> int:
    return main(["--study", "./tiny.toml", "--threads", "1", "--device", "cpu", *arguments])


def confirmed() -> dict[str, Any]:
    study = load_study(open_storage("sqlite:///tiny.db"), "tiny")
    found: dict[str, Any] = study.user_attrs[CONFIRMED_KEY]
    return found


def test_calls_make_the_steps_of_the_reference_machine(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    searched(CLOCK)
    assert run() == 0
    assert len(made) == 2 * 3 and {steps for _, steps in made} == {20}
    found = confirmed()
    assert found["clock"] == "./machine.toml at speed 1"
    assert "prediction" not in found or found["prediction"] is None
    assert [row["longest_call_s"] for row in found["table"]] == [10.0, 10.0]
    out = capsys.readouterr().out
    assert "as many steps as the machine ./machine.toml at speed 1 makes" in " ".join(out.split())
    # Known calls are read, by their steps.
    made.clear()
    assert run() == 0 and not made


def test_the_winner_is_measured_at_other_speeds_each_call_once(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    searched(CLOCK)
    assert run("--speeds", "1", "0.5", "2") == 0
    streams = capsys.readouterr()
    # Those at speed 1 are known.
    assert "at 3 speeds: 9 calls, 3 of them known; the others take the reference machine" in (
        streams.err
    )
    assert sorted(made[6:]) == sorted(
        (f"{rune}/0 bilinear", steps) for rune in ("os", "ur", "ear") for steps in (10, 40)
    )
    found = confirmed()
    assert [(at["speed"], at["steps"]) for at in found["speeds"]] == [
        (0.5, [10, 10]),
        (1.0, [20, 20]),
        (2.0, [40, 40]),
    ]
    half, full, double = (at["loss"] for at in found["speeds"])
    assert half > full > double and full == pytest.approx(found["loss"])
    assert "The winner at other speeds of the reference machine" in streams.out
    # Where values ask for fewer steps than there is time for, speeds share their calls.
    made.clear()
    assert run("--speeds", "5", "10") == 0
    assert sorted(made) == [(f"{rune}/0 bilinear", 100) for rune in ("ear", "os", "ur")]


def test_speeds_need_a_reference_machine(made: Made) -> None:
    searched("")
    with pytest.raises(UserError, match=r"--speeds are of a reference machine, .* in \[clock\]"):
        run("--speeds", "0.5")
    with pytest.raises(UserError, match=r"--speeds is 0; write 0\.001 or more"):
        run("--speeds", "1", "0")
    assert not made


def by_wall(
    monkeypatch: pytest.MonkeyPatch, steps: Callable[[CheapInstance], int], seconds: float
) -> None:
    """Calls by wall clock make so many steps."""

    def call(
        self: CheapMethod, values: Values, instances: Any, on_step: OnStep, planned: Any = None
    ) -> list[Called]:
        assert planned is None
        return [Called(0.1, steps(i), seconds, 100) for i in instances]

    monkeypatch.setattr(CheapMethod, "call", call)


def test_a_confirmation_by_wall_clock_says_how_far_the_plan_was_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    searched(CLOCK)
    by_wall(monkeypatch, lambda i: {"os": 18, "ur": 19, "ear": 22}[i.rune], 9.0)
    assert run("--wall") == 0
    found = confirmed()
    assert found["clock"] == "wall"
    assert found["prediction"] == {
        "calls": 6,
        "steps": pytest.approx(0.95),
        "least_steps": pytest.approx(0.9),
        "most_steps": pytest.approx(1.1),
        "seconds": pytest.approx(0.9),
    }
    out = " ".join(capsys.readouterr().out.split())
    assert "made 0.95 of the steps that the reference machine would make" in out
    assert "0.90 to 1.10" in out and "18 of 100" in out
    # The limit is of real seconds here.
    by_wall(monkeypatch, lambda _: 20, 11.5)
    Path("tiny.db").unlink()
    searched(CLOCK)
    assert run("--wall") == 1
    assert "a call took 11.5 s; 11 are allowed" in capsys.readouterr().err


def test_a_call_of_a_busy_machine_is_no_measurement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    searched(CLOCK)
    by_wall(monkeypatch, lambda _: 3, 10.0)
    with pytest.raises(UserError, match="made 3 of the 20 steps that the reference machine makes"):
        run("--wall")
    by_wall(monkeypatch, lambda _: 20, 10.0)
    assert run("--wall") == 0
    assert {c["steps"] for row in confirmed()["table"] for c in row["measured"]} == {20}


def test_a_call_that_would_be_too_long_puts_its_recipe_out(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    searched(CLOCK.replace("[clock]", "[clock]\nspeed = 0.04"))  # less than one step
    assert run() == 1
    assert "would take, on the reference machine, 12.5 s; 11 are allowed" in capsys.readouterr().err


def test_a_study_by_wall_clock_shows_steps_made_of_steps_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    searched("")
    by_wall(monkeypatch, lambda i: 60 if i.rune == "ur" else 100, 9.0)
    assert run() == 0
    assert "60 of 100" in capsys.readouterr().out
    assert confirmed()["clock"] == "wall"
