"""Control of a study that runs: commands, and what real workers make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpo import budget, compare, drop, enqueue, pause, resume, status, stop
from hpo.errors import UserError
from hpo.pruners.racing import Race
from hpo.storage.open import load_study, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.study.config import Budget, StudyConfig, load_study_file
from hpo.study.control import read_wishes
from hpo.study.create import join
from hpo.trial.ranking import best_trials, is_feasible
from hpo.worker.display import Display
from hpo.worker.loop import Loop
from hpo.worker.objective import Objective
from tests.cheap import CHEAP_TOML
from tests.waiting import wait_for

if TYPE_CHECKING:
    from tests.conftest import Nursery, Process

SCRIPT = str(Path(__file__).parent / "cheap_worker.py")
CALL_S = 0.3
LR = '[space.lr]\ntype = "float"\nlow = 0.0001\nhigh = 0.9\n'
SPACE = (
    LR
    + '[space.shape]\ntype = "choice"\nchoices = ["pen", "direct"]\n'
    + '[space.steps]\ntype = "int"\nlow = 1\nhigh = 9\nwhen = { shape = "direct" }\n'
)

Ask = Callable[..., None]


@pytest.fixture
def url(new_database: Callable[[str], str], request: pytest.FixtureRequest) -> str:
    return new_database(getattr(request, "param", "sqlite"))


both = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def ask(url: str, tmp_path: Path) -> Ask:
    """Runs a command on the study ``cheap``."""
    file = tmp_path / "cheap.toml"
    file.write_text(
        f'name = "cheap"\nstorage = "sqlite:///x.db"\n[instances]\nsource = "drawn"\n{LR}'
    )

    def ask(command: Any, *arguments: str) -> None:
        assert command.main(["--study", str(file), "--storage", url, *arguments]) == 0

    return ask


@pytest.fixture
def start(url: str, launch: Callable[..., Process], cheap_nursery: Nursery) -> Callable[..., Any]:
    """Starts four real workers whose calls take a third of a second."""

    def start(trials: int) -> list[Process]:
        options = (f"step_s={CALL_S}", "heartbeat_s=0.4", "grace_s=3")
        return [launch([SCRIPT, url, str(trials), *options], cheap_nursery) for _ in range(4)]

    return start


def lines_of(process: Any) -> str:
    return str(process.log_path.read_text())


def trials_of(url: str) -> list[FrozenTrial]:
    return load_study(open_storage(url), "cheap").get_trials(deepcopy=False)


def reports(url: str) -> int:
    return sum(len(t.intermediate_values) for t in trials_of(url))


@both
def test_paused_workers_wait_after_the_call_in_hand_and_then_finish_the_budget(
    url: str, start: Callable[[int], list[Process]], ask: Ask
) -> None:
    workers = start(30)
    wait_for(lambda: all("running" in lines_of(w) for w in workers))
    ask(pause)
    before = reports(url)
    wait_for(lambda: all("paused the study" in lines_of(w) for w in workers))
    held = reports(url)
    assert held <= before + 2 * len(workers)  # the calls in hand, and those that began meanwhile
    ask(resume)
    for worker in workers:
        assert worker.wait(120) == 0, lines_of(worker)
        assert "going on" in lines_of(worker)
    trials = trials_of(url)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 30
    # Heartbeats of trials in hand went on, so that nobody took them over.
    assert not any(t.user_attrs.get("attempts") for t in trials)


@both
def test_stopped_workers_end_well_and_a_larger_budget_is_met_exactly(
    url: str, start: Callable[[int], list[Process]], ask: Ask
) -> None:
    workers = start(500)
    wait_for(lambda: all("running" in lines_of(w) for w in workers))
    ask(budget, "--trials", "14")
    ask(stop)
    for worker in workers:
        assert worker.wait(60) == 0, lines_of(worker)
        assert "stopped the study" in lines_of(worker)
    trials = trials_of(url)
    assert not any(t.state == TrialState.RUNNING for t in trials)
    assert all(t.state in (TrialState.COMPLETE, TrialState.WAITING) for t in trials)
    # What was asked before they joined does not stop these; their options say 500.
    for worker in start(500):
        assert worker.wait(120) == 0, lines_of(worker)
    done = [t for t in trials_of(url) if t.state.is_finished()]
    assert len(done) == 14
    ask(budget, "--trials", "+2")
    for worker in start(500):
        assert worker.wait(120) == 0, lines_of(worker)
    assert sum(t.state == TrialState.COMPLETE for t in trials_of(url)) == 16


# In one process


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(
        f'name = "small"\nstorage = "sqlite:///{tmp_path}/small.db"\nartifacts = "none"\n'
        f'[instances]\nsource = "drawn"\nruns = ["a"]\n'.replace("runs", "runes")
        + CHEAP_TOML + '[budget]\ntrials = 3\n[[start]]\nlr = 0.01\n' + LR
    )  # fmt: skip
    return path


def work(file: Path, trials: int) -> optuna.Study:
    config = load_study_file(str(file))
    study, storage = join(config, config.storage, {"measures": "this"})
    with Display("small", None, 0) as display:
        objective = Objective(config, config.load_problem(None))
        budget_ = Budget(trials=trials)
        loop = Loop(study, storage, objective, budget_, config.recovery, display)
        loop.forget = objective.forget
        loop.work()
    return study


def test_a_dropped_trial_is_kept_and_counts_for_nobody(file: Path, capsys: Any) -> None:
    study = work(file, 3)
    (best,) = best_trials(study.get_trials(), 1)
    study_argument = ["--study", str(file)]
    assert drop.main([*study_argument, "--trial", str(best.number), "--why", "a mistake"]) == 0
    assert f"dropped trial {best.number}: a mistake" in capsys.readouterr().out
    found = load_study(open_storage(load_study_file(str(file)).storage), "small").get_trials()
    assert len(found) == 3 and found[best.number].value == best.value
    assert not is_feasible(found[best.number])
    assert best_trials(found, 1)[0].number != best.number
    assert found[best.number].user_attrs["dropped"] == "a mistake"
    race = Race()
    race.of(found)
    assert len(race._whole) == 2
    assert status.main([*study_argument, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["dropped"] == [best.number] and "a mistake" in said["controls"][0]

    assert drop.main([*study_argument, "--trial", str(best.number), "--undo"]) == 0
    again = load_study(open_storage(load_study_file(str(file)).storage), "small").get_trials()
    assert best_trials(again, 1)[0].number == best.number
    assert again[best.number].system_attrs == best.system_attrs


def test_a_living_worker_forgets_what_was_dropped(file: Path, monkeypatch: Any) -> None:
    """Its sampler sees the trial no more, though the worker knew it as finished."""
    config = load_study_file(str(file))
    study, storage = join(config, config.storage, {"measures": "this"})
    seen: list[list[int]] = []
    sampled = type(study.sampler).sample_relative

    def spy(self: Any, study: optuna.Study, trial: FrozenTrial, space: Any) -> Any:
        known = study._get_trials(deepcopy=False, use_cache=True)
        seen.append([t.number for t in known if t.state.is_finished()])
        if trial.number == 2:
            assert drop.main(["--study", str(file), "--trial", "0", "--why", "x"]) == 0
        return sampled(self, study, trial, space)

    monkeypatch.setattr(type(study.sampler), "sample_relative", spy)
    with Display("small", None, 0) as display:
        objective = Objective(config, config.load_problem(None))
        Loop(study, storage, objective, Budget(trials=5), config.recovery, display).work()
    # The first trial is that of [[start]]; the third one's sampling drops it.
    assert seen == [[0], [0, 1], [1, 2], [1, 2, 3]]
    assert not is_feasible(study.get_trials()[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lrr=0.01"], "lrr is no parameter; did you mean lr?; [space] has lr, shape, steps"),
        (["lr=5"], "lr is 5.0; write a number from 0.0001 to 0.9"),
        (["lr=much"], "lr is 'much'; write a number from 0.0001 to 0.9"),
        (["shape=round"], "shape is 'round'; write one of pen, direct"),
        (["steps=1.5"], "steps is 1.5; write a whole number from 1 to 9"),
        (["shape=pen", "steps=2"], "steps exists only where shape is 'direct'"),
        (["lr"], "'lr' is no parameter; write NAME=VALUE"),
        ([], "write lr=3e-3 steps=800, say, or --recipe FILE"),
    ],
)
def test_what_the_space_has_not_is_not_queued(
    file: Path, arguments: list[str], message: str
) -> None:
    file.write_text(file.read_text().replace(LR, "").replace("[[start]]\nlr = 0.01\n", "") + SPACE)
    config = load_study_file(str(file))
    _, storage = join(config, config.storage, {"measures": "this"})
    with pytest.raises(UserError) as error:
        enqueue.main(["--study", str(file), *arguments])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert load_study(storage, "small").get_trials() == []


def test_queued_parameters_run_next(file: Path) -> None:
    work(file, 1)
    assert enqueue.main(["--study", str(file), "lr=0.02"]) == 0
    assert work(file, 2).get_trials()[1].params == {"lr": 0.02}


def test_what_another_program_queued_ends_in_plain_words_and_ends_no_worker(file: Path) -> None:
    study = work(file, 1)
    for parameters in ({"lr": 7.0}, {"lrr": 0.1}, {"lr": "much"}, {"lr": None}):
        study.enqueue_trial(parameters)
    trials = work(file, 6).get_trials()
    assert [t.state for t in trials[1:5]] == [TrialState.PRUNED] * 4
    reasons = [t.user_attrs["reason"] for t in trials[1:5]]
    assert reasons[0] == (
        "impossible: queued parameters: lr is 7.0; write a number from 0.0001 to 0.9"
    )
    assert reasons[1].startswith("impossible: queued parameters: lrr is no parameter; did you mean")
    assert trials[5].state == TrialState.COMPLETE


def test_a_start_that_is_added_to_a_living_study_is_queued_once(file: Path) -> None:
    work(file, 2)
    file.write_text(file.read_text().replace(LR, "[[start]]\nlr = 0.03\n" + LR))
    assert [t.params["lr"] for t in work(file, 3).get_trials()][2] == 0.03
    queued = [t for t in work(file, 4).get_trials() if "fixed_params" in t.system_attrs]
    assert [t.params["lr"] for t in queued] == [0.01, 0.03]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no part of the budget is given"),
        (["--trials", "x"], "--trials is 'x'; write a number, +NUMBER or none"),
        (["--trials", "-3"], "--trials is -3; write greater than 0"),
        (["--trials", "2.5"], "--trials is 2.5; write a valid integer"),
        (["--stagnation", "+3"], "there is no limit yet; write a number"),
    ],
)
def test_a_budget_that_can_not_be_is_one_line(
    file: Path, arguments: list[str], message: str
) -> None:
    config = load_study_file(str(file))
    _, storage = join(config, config.storage, {"measures": "this"})
    with pytest.raises(UserError) as error:
        budget.main(["--study", str(file), *arguments])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert read_wishes(storage, load_study(storage, "small")._study_id).controls == ()


def test_a_budget_may_lose_its_limit_and_rows_of_other_releases_are_passed_over(file: Path) -> None:
    config: StudyConfig = load_study_file(str(file))
    study, storage = join(config, config.storage, {"measures": "this"})
    assert budget.main(["--study", str(file), "--trials", "none", "--stagnation", "9"]) == 0
    study.set_user_attr("control:000001", {"action": "dance"})
    assert isinstance(storage, StudyStorage)
    found = read_wishes(storage, study._study_id)
    assert found.apply(config.budget) == Budget(stagnation=9) and len(found.controls) == 1


def test_status_looks_again_until_somebody_ends_it(
    file: Path, capsys: Any, monkeypatch: Any
) -> None:
    work(file, 1)
    capsys.readouterr()
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            assert pause.main(["--study", str(file)]) == 0
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr("hpo.status.time.sleep", sleep)
    assert status.main(["--study", str(file), "--watch", "7"]) == 0
    first, said, second = capsys.readouterr().out.partition("paused the study at")
    assert pauses == [7, 7] and first.count("study       small") == 1
    assert "paused      " in second and "asked       " in second and said


# Comparing


def test_two_trials_are_compared_on_what_both_have_met(file: Path, capsys: Any) -> None:
    trials = work(file, 2).get_trials()
    capsys.readouterr()
    assert compare.main(["--study", str(file), "0", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["parameter", "0", "1"] and lines[1].split()[0] == "lr"
    ratio = trials[1].value / trials[0].value  # type: ignore[operator]
    assert f"loss of 1 over that of 0: {ratio:.4f}" in lines[-1]
    assert compare.main(["--study", str(file), "1", "1", "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["parameters"] == {} and same["ratio"]["value"] == pytest.approx(1)
    assert compare.main(["--study", str(file), "small", "small/0"]) == 0
    recipe = file.with_name("r.json")
    recipe.write_text('{"lr": 0.01}')
    assert compare.main(["--study", str(file), str(recipe), "0"]) == 0
    assert "parameter" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("two", "message"),
    [
        (["0"], "1 are named; write two"),
        (["0", "9"], "study small has no trial 9"),
        (["0", "nobody"], "nobody"),
    ],
)
def test_what_can_not_be_compared_is_one_line(file: Path, two: list[str], message: str) -> None:
    work(file, 1)
    with pytest.raises(UserError) as error:
        compare.main(["--study", str(file), *two])
    assert message in str(error.value) and "\n" not in str(error.value)
