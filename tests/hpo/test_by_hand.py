"""Trials that no worker measured: added by hand, or left by another program, by real commands."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.samplers.bounded import History
from hpo.trial.ranking import best_trials
from tests.cheap import CHEAP_TOML

if TYPE_CHECKING:
    from tests.conftest import Nursery

STUDY = f"""
name = "s"
storage = "sqlite:///s.db"
{CHEAP_TOML}
[instances]
source = "drawn"
[space.lr]
type = "float"
low = 1e-4
high = 1e-1
log = true
"""
LR = FloatDistribution(1e-4, 1e-1, log=True)


def added() -> list[FrozenTrial]:
    """Numbers 2 to 9: losses that look best, attributes of wrong types, another shape."""

    def lr(value: float, **more: object) -> FrozenTrial:
        return create_trial(value=value, params={"lr": 1e-3}, distributions={"lr": LR}, **more)  # type: ignore[arg-type]

    words = dict.fromkeys(("instances", "machine", "longest_call_s", "cost"), "x")
    return [
        lr(-math.inf),
        create_trial(value=1e-4, params={"x": 1}, distributions={"x": FloatDistribution(0, 1)}),
        lr(2e-4, user_attrs={**words, "recipe": 5, "attempts": 3, "outcome": 7, "worker": [1]}),
        lr(3e-4, user_attrs={"recipe": '{"lr": "x"}', "instances": [{"instance": 5}, 7]}),
        lr(4e-4, system_attrs={"constraints": "abc"}),
        lr(5e-4, system_attrs={"constraints": {"a": 1}, "artifacts:x": "nope"}),
        lr(math.inf, system_attrs={"constraints": 7}),
        create_trial(state=TrialState.PRUNED, intermediate_values={5: math.nan, -3: 1.0}),
    ]


@pytest.fixture
def study(tmp_path: Path, cheap_nursery: Nursery) -> Path:
    """A directory with a study of two measured trials and those that were added."""
    (tmp_path / "s.toml").write_text(STUDY)
    done = command(tmp_path, cheap_nursery, "worker", "--trials", "2")
    assert done.returncode == 0, done.stderr
    opened = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db")
    opened.add_trials(added())
    opened.set_user_attr("about", 5)
    return tmp_path


def command(
    directory: Path, nursery: Nursery, name: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, RUNES_ARTIFACTS="none", PYTHONPATH=str(Path.cwd()))
    whole = ["-m", f"hpo.{name}", "--study", "s.toml", *arguments]
    return nursery.run(whole, directory, environment, timeout_s=60)


def test_trials_that_were_not_measured_here_are_passed_over_with_a_remark(
    study: Path, cheap_nursery: Nursery
) -> None:
    status = command(study, cheap_nursery, "status", "--json")
    assert status.returncode == 0, status.stderr
    found = json.loads(status.stdout)
    assert 2 not in [best["trial"] for best in found["best"]]
    remarks = "\n".join(found["unreadable"])
    assert "trial 2: its loss is -inf; the trial is passed over" in remarks
    assert "trial 6: constraints should be numbers; the trial is passed over" in remarks
    assert "trial 4: recipe" in remarks

    exported = command(study, cheap_nursery, "export", "--out", "best.py")
    assert exported.returncode == 0, exported.stderr
    assert "trial 3 was not measured here; it is passed over" in exported.stderr
    confirmed = command(study, cheap_nursery, "confirm", "--top", "2")
    assert confirmed.returncode == 0, confirmed.stderr
    for number in (3, 4, 5):
        assert f"trial {number} was not measured here; it is passed over" in confirmed.stderr
    assert "3 candidates" in confirmed.stderr  # the default and the two that were measured
    for name, *arguments in (["report", "--out", "page.html"], ["worker", "--trials", "13"]):
        done = command(study, cheap_nursery, name, *arguments)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert "bug" not in done.stderr


def test_a_sampler_and_a_ranking_do_not_see_them() -> None:
    usual = create_trial(value=1.0, params={"lr": 1e-3}, distributions={"lr": LR})
    trials = [usual, *added()]
    for number, trial in enumerate(trials):
        trial.number = number
    assert best_trials(trials)[0].value == 1e-4  # a finite loss may be someone's own
    assert [t.number for t in History(100, 0).part_of(trials)] == [0, 2, 3, 4, 8]
    assert [t.number for t in History(3, 0).part_of(trials)][:1] != [1]


def test_a_worker_that_waits_says_for_what(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(STUDY)
    arguments = ["-m", "hpo.worker", "--study", "s.toml", "--trials", "1"]
    environment = dict(os.environ, RUNES_ARTIFACTS="none", PYTHONPATH=str(Path.cwd()))
    first = [sys.executable, *arguments]
    subprocess.run(first, cwd=tmp_path, env=environment, check=True, capture_output=True)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db")
    left = study.ask()
    arguments[-1] = "2"
    waiting = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = ""
    assert waiting.stderr is not None
    try:
        for line in waiting.stderr:
            said += line
            if "study.tell(1, state=optuna.trial.TrialState.FAIL)" in line:
                break
        assert "waiting: the trials that run (1) will spend the budget" in said
        assert "trial 1 has no heartbeat" in said
        study.tell(left, state=TrialState.FAIL)
        assert waiting.wait(30) == 0
    finally:
        waiting.kill()
        waiting.wait()
        waiting.stderr.close()
