"""Looks at a lower speed: recipes wait after them, and the best are promoted, once each.

Workers are real processes, and databases are real ones.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from optuna.trial import FrozenTrial, TrialState

from hpo.clock.profile import Profile
from hpo.errors import UserError
from hpo.problem.base import digest_of
from hpo.storage.open import load_study, open_storage
from hpo.study.config import load_study_file
from hpo.trial.ranking import best_trials
from hpo.trial.record import read_trial
from tests.cheap import CHEAP
from tests.logged import LOG, calls_in

if TYPE_CHECKING:
    from tests.conftest import Forked, Nursery, Process

REPO = Path(__file__).parents[3]
L = T = 4
STUDY = f"""
name = "s"
storage = "sqlite:///unused.db"
[clock]
machine = "MACHINE"
[method]
name = "tests.logged:LoggedMethod"
[problem]
name = "{CHEAP["problem"]["name"]}"
[instances]
source = "drawn"
runes = ["a", "b", "c", "d"]
speeds = [0.1, 1.0]
[pruner]
name = "racing"
[sampler]
name = "random"
[fixed]
steps = 100
[space.lr]
type = "float"
low = 1e-4
high = 1e-1
log = true
"""
Start = Callable[..., "Forked"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "calls.log"


@pytest.fixture
def start(cheap_nursery: Nursery, tmp_path: Path, log: Path, ended: list[Process]) -> Start:
    """Starts a worker on the study, by a machine of two steps a second."""
    machine, study = tmp_path / "machine.toml", tmp_path / "s.toml"
    profile = Profile(
        machine={},
        method="tests.logged:LoggedMethod",
        precision="fp32",
        startup={"call": 0.0},
        step={"step": 0.5},
    )
    machine.write_text(profile.to_toml())
    study.write_text(STUDY.replace("MACHINE", str(machine)))

    def start(url: str, trials: int) -> Forked:
        out, err = (tmp_path / f"{len(ended)}.{kind}" for kind in ("out", "err"))
        arguments = ["-m", "hpo.worker", "--study", str(study), "--trials", str(trials)]
        variables = {"RUNES_STORAGE": url, "RUNES_ARTIFACTS": "none", LOG: str(log)}
        environment = os.environ | {"PYTHONPATH": str(REPO)} | variables
        process = cheap_nursery.start(arguments, tmp_path, environment, out, err)
        ended.append(process)
        return process

    return start


def is_promoted(trial: FrozenTrial) -> bool:
    return len(read_trial(trial).instances) > L


def test_the_best_looks_are_promoted_once_and_what_counts_is_the_target(
    start: Start, url: str, log: Path
) -> None:
    workers = [start(url, 60) for _ in range(2)]
    said = [worker.communicate(120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    trials = load_study(open_storage(url), "s").get_trials(deepcopy=False)
    finished = [t for t in trials if t.state.is_finished()]
    assert len(finished) == 60

    # No call is made twice, though a promoted recipe is a trial of its own.
    assert max(Counter(calls_in(log)).values()) == 1
    promoted = [t for t in finished if is_promoted(t)]
    recipes = [digest_of(read_trial(t).recipe or {}) for t in promoted]
    assert promoted and len(recipes) == len(set(recipes))
    waited = 0
    for trial in promoted:
        calls = read_trial(trial).instances
        twin = next(t for t in trials if t.params == trial.params)
        if twin is trial:  # its looks were the best as they ended, and it was time for one
            continue
        waited += 1
        assert [call.kept for call in calls] == [True] * L + [False] * (len(calls) - L)
        assert twin.number < trial.number and twin.state == TrialState.PRUNED
        assert read_trial(twin).reason == f"waits after {L} looks"
    assert waited

    # The first is promoted when looks have cost as much as its calls will, and not before.
    before = calls_in(log)[: [c[1].endswith("*1") for c in calls_in(log)].index(True)]
    assert T <= 0.1 * len(before) <= T + 1.5

    best = best_trials(trials)[0]
    calls = read_trial(best).instances
    assert [c.instance for c in calls] == [f"{r}/0*{s}" for s in ("0.1", "1") for r in "abcd"]
    assert best.value == pytest.approx(sum(c.loss for c in calls[L:]) / T)
    assert read_trial(best).looks == L
    # The cheap method's loss is the better the nearer lr is to 0.01.
    assert 0.005 < best.params["lr"] < 0.02


def test_speeds_that_do_not_rise_are_refused(start: Start, tmp_path: Path) -> None:
    study = tmp_path / "s.toml"
    study.write_text(study.read_text().replace("[0.1, 1.0]", "[1.0, 0.1]"))
    with pytest.raises(UserError, match=r"write each once and the lowest first: \[0.1, 1.0\]"):
        load_study_file(str(study))
