"""The command: what is measured, once each, and what is made of it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpo.confirm.__main__ import main
from hpo.confirm.measurements import Measurements, table_seed
from hpo.errors import UserError
from hpo.export.__main__ import main as export
from hpo.export.selection import choose
from hpo.problem.base import Evaluation, NotFiniteError
from hpo.report.contents import confirmation_of
from hpo.report.markdown import to_terminal
from hpo.status import main as status
from hpo.storage.calls import forget_study
from hpo.storage.open import load_study, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.study.config import StudyConfig, load_study_file
from hpo.study.confirmation import (
    CALLS_PREFIX,
    CONFIRMED_KEY,
    Confirmation,
    Difference,
    describe_difference,
)
from hpo.study.create import create
from hpo.study.manifest import MANIFEST_KEY, make_manifest
from hpo.trial.record import Call
from tests.cheap import CHEAP_TOML, CheapInstance, CheapMethod, CheapProblem
from tests.hpo.configs import make_config

FORM = """
name = "tiny"
storage = "sqlite:///tiny.db"
limit_s = 12.0
margin_s = 2.0
{tables}
[instances]
source = "drawn"
runes = ["thorn"]
[confirm]
runes = ["os", "ur", "ear"]
splits = [0, 3]
[estimator]
strata = 2
replicates = 2
[fixed]
{fixed}
[space.lr]
type = "float"
low = 1e-4
high = 1e-2
log = true
"""
STUDY = FORM.format(tables=CHEAP_TOML, fixed="steps = 3")
REAL_FIXED = """steps = 3
batch_size = 2
output = "velocity"
render = "direct"
precision = "fp32"
"""
METHOD = CheapMethod()
LR = optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
Values = dict[str, Any]
Fake = Callable[[Values], float]  # seconds of a call


def recipe_of(lr: float) -> Values:
    return METHOD.complete({"steps": 3, "lr": lr})


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings from outside, and signals as they were."""
    monkeypatch.delenv("RUNES_STORAGE", raising=False)
    hook = sys.unraisablehook
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    sys.unraisablehook = hook
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    """A finished search, which calls the largest learning rate best, in this directory."""
    monkeypatch.chdir(tmp_path)
    return searched(tmp_path, STUDY)


def searched(folder: Path, text: str) -> optuna.Study:
    (folder / "tiny.toml").write_text(text)
    config = load_study_file("tiny.toml")
    _, study = create(config, config.storage, manifest_of(config))
    for lr, loss in ((1e-3, 0.5), (8e-3, 0.3), (4e-3, 0.6), (2e-3, 0.4)):
        add_trial(study, config, lr, loss)
    return study


def manifest_of(config: StudyConfig) -> dict[str, str]:
    return make_manifest(config, config.load_problem(None))


def add_trial(study: optuna.Study, config: StudyConfig, lr: float, loss: float) -> None:
    recipe = config.load_method().complete({**config.fixed, "lr": lr})
    call = {
        "instance": "thorn/0",
        "loss": loss,
        "standard_error": 0.01,
        "seconds": 0.1,
        "steps": 3,
    }
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.COMPLETE,
            value=loss,
            params={"lr": lr},
            distributions={"lr": LR},
            user_attrs={
                "recipe": json.dumps(recipe),
                "instances": [call],
                "longest_call_s": 0.1,
                "outcome": "complete",
            },
        )
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fake], list[float]]:
    """Puts a stand-in for calls, whose loss grows with the learning rate; returns those made."""

    def put(seconds: Fake) -> list[float]:
        made: list[float] = []

        def behave(values: Values, instance: CheapInstance) -> tuple[float, float]:
            made.append(values["lr"])
            return 100 * values["lr"], seconds(values)

        monkeypatch.setattr(CheapMethod, "behave", staticmethod(behave))
        return made

    return put


Calls = Callable[[Fake], list[float]]


def run(*arguments: str) -> int:
    return main(["--study", "tiny.toml", "--threads", "1", "--device", "cpu", *arguments])


def confirmed() -> dict[str, Any]:
    found: dict[str, Any] = load_study(open_storage("sqlite:///tiny.db"), "tiny").user_attrs[
        CONFIRMED_KEY
    ]
    return found


def kept(study: optuna.Study) -> dict[tuple[str, str], Any]:
    """The calls that the database keeps, by recipe and instance."""
    storage = study._storage
    assert isinstance(storage, StudyStorage)
    rows = storage.calls_of_study(study._study_id)
    return {(row.recipe, row.instance): json.loads(row.value_json) for row in rows}


def as_older_releases(study: optuna.Study, **changed: Any) -> None:
    """Put the calls among the study's attributes, where they were before there was a table.

    Args:
        changed: what they say instead; None: they don't say it.
    """
    config = load_study_file("tiny.toml")
    older = Measurements(config, study, manifest_of(config), config.load_problem(None), METHOD)
    for (recipe, label), call in kept(study).items():
        call = {**call, "basis": older._basis[label], **changed}
        call.pop("instance")
        attr = {key: value for key, value in call.items() if value is not None}
        study.set_user_attr(f"{CALLS_PREFIX}{recipe}:{label}", attr)
    storage = study._storage
    assert isinstance(storage, StudyStorage)
    with storage.engine.begin() as c:
        forget_study(c, study._study_id)


# The command


def test_real_calls_end_to_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    drawn_once: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    form = FORM.format(tables="", fixed=REAL_FIXED)
    study = searched(tmp_path, form.replace("limit_s = 12.0", "limit_s = 150.0"))
    assert run("--top", "1") == 0
    out = capsys.readouterr().out
    assert "is the best one, measured again on" in out
    assert max(map(len, out.splitlines())) <= 120
    found = confirmed()
    assert {r["name"]: r["trial"] for r in found["table"]} == {"default": 2, "best 1": 1}
    assert len(kept(study)) == 2 * 6
    assert all(0 < m["loss"] < 10 and m["steps"] == 3 for m in kept(study).values())
    calls = {label: m for (recipe, label), m in kept(study).items() if recipe == found["digest"]}
    assert found["loss"] == pytest.approx(sum(m["loss"] for m in calls.values()) / 6)
    assert {m["instance"]: m for m in found["table"][0]["measured"]} == calls
    json.dumps(found, allow_nan=False)


def test_the_winner_is_found_where_the_search_was_wrong(
    study: optuna.Study, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    made = calls(lambda _: 1.5)
    assert run("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == confirmed()
    assert (found["trial"], found["name"]) == (0, "best 3")
    assert found["recipe"] == recipe_of(1e-3)
    assert found["rounds"] == [2, 3, 6]
    assert found["estimator"] == {"strata": 2, "replicates": 2, "seed": 1}
    assert sorted(found["instances"]) == sorted(
        f"{rune}/{split} bilinear" for rune in ("os", "ur", "ear") for split in (0, 3)
    )
    rows = {row["name"]: row for row in found["table"]}
    assert next(iter(rows)) == "best 3"
    assert rows["best 1"]["left"] == "behind"
    assert rows["best 1"]["rounds"] == 0
    assert rows["default"]["calls"] == 6
    assert len(made) == sum(row["calls"] for row in rows.values())
    # The search made 0.3 of the default's 0.6; here it is worse than the default.
    assert rows["best 1"]["search_difference"] == pytest.approx(-0.3)
    assert rows["best 1"]["difference"] > 0
    against = found["against"]["default"]
    assert against["trial"] == 2
    assert against["low"] < against["difference"] < against["high"] < 0
    assert against["difference"] == pytest.approx(rows["best 3"]["difference"])


def test_a_recipe_whose_answers_cost_too_much_is_out_and_all_costs_are_told(
    tmp_path: Path,
    study: optuna.Study,
    calls: Calls,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "tiny.toml").write_text(f"{STUDY}\n[limits]\ncost = 2.0\n")
    config = load_study_file("tiny.toml")
    study.set_user_attr(MANIFEST_KEY, manifest_of(config))
    calls(lambda _: 1.5)

    evaluate = CheapProblem.evaluate

    def costly(self: CheapProblem, model: float, *arguments: Any) -> Evaluation:
        # The best recipe's answers cost too much.
        return replace(evaluate(self, model, *arguments), cost=2.5 if model < 0.15 else 1.5)

    monkeypatch.setattr(CheapProblem, "evaluate", costly)
    assert run() == 0
    out = capsys.readouterr().out
    assert "an answer costs 2.50 of the plain network's; 2 are allowed" in out
    assert "  1.50  " in out  # of the others
    rows = {row["name"]: row for row in confirmed()["table"]}
    assert rows["best 3"]["left"] == "infeasible"
    assert rows["best 3"]["cost"] == 2.5
    assert confirmed()["name"] != "best 3"
    assert confirmed()["cost"] == 1.5


def test_calls_that_were_stored_without_their_cost_are_used(
    study: optuna.Study, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    made = calls(lambda _: 1.5)
    assert run("--top", "1") == 0
    as_older_releases(study, cost=None)
    made.clear()
    capsys.readouterr()
    assert run("--top", "1") == 0
    assert made == []
    assert confirmed()["cost"] is None
    assert [row["cost"] for row in confirmed()["table"]] == [None, None]


def test_exports_and_status_use_what_was_confirmed(
    study: optuna.Study, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"no confirmed .* python -m hpo\.confirm --study tiny"):
        export(["--study", "tiny.toml", "--confirmed", "--format", "json"])
    calls(lambda _: 1.5)
    run()
    capsys.readouterr()
    chosen = choose(load_study(open_storage("sqlite:///tiny.db"), "tiny"), None, METHOD)
    assert (chosen.name, chosen.confirmed) == ("trial 0 of study tiny", True)
    assert chosen.loss == confirmed()["loss"]
    for which in ((), ("--confirmed",)):
        assert export(["--study", "tiny.toml", "--format", "json", *which]) == 0
        assert json.loads(capsys.readouterr().out)["lr"] == 1e-3
    assert status(["--study", "tiny.toml"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("confirmed"))
    assert line.startswith(f"confirmed   trial 0  loss {chosen.loss:.4f} ± ")
    assert line.endswith(" to the default's")
    assert len(line) <= 100
    status(["--study", "tiny.toml", "--json"])
    assert json.loads(capsys.readouterr().out)["confirmed"]["name"] == "best 3"


def test_a_default_without_a_trial_can_win_and_be_exported(
    tmp_path: Path,
    study: optuna.Study,
    calls: Calls,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls(lambda _: 1.5)
    # So low a fixed rate has none of the trials, and it is the best here.
    space = '[space.square]\ntype = "switch"\n'
    text = STUDY.partition("[space.lr]")[0].replace("steps = 3", "steps = 3\nlr = 1e-4")
    (tmp_path / "tiny.toml").write_text(text + space)
    manifest = manifest_of(load_study_file("tiny.toml"))
    study.set_user_attr(MANIFEST_KEY, manifest)
    assert run("--top", "2") == 0
    assert "The default recipe is the best one" in capsys.readouterr().out
    found = confirmed()
    assert (found["trial"], found["name"]) == (None, "default")
    assert list(found["against"]) == ["runner_up"]
    assert found["against"]["runner_up"]["trial"] == 3
    assert status(["--study", "tiny.toml"]) == 0
    assert "confirmed   default recipe  loss " in capsys.readouterr().out
    arguments = ["--study", "tiny.toml", "--threads", "1", "--device", "cpu", "--confirmed"]
    assert export([*arguments, "--out", "f.py", "--no-challenge"]) == 0
    assert "wrote f.py: the recipe 'default' of no trial, confirmed in" in capsys.readouterr().out
    written = (tmp_path / "f.py").read_text()
    assert "'lr': 0.0001" in written
    head = " ".join(written.partition("import")[0].split())
    assert f"confirmed loss {found['loss']:.4f} ± " in head
    assert "python -m hpo.export --study tiny --confirmed --out f.py" in head


def test_a_recipe_from_a_file_takes_part_and_duplicates_count_once(
    tmp_path: Path, study: optuna.Study, calls: Calls
) -> None:
    made = calls(lambda _: 1.5)
    (tmp_path / "mine.json").write_text(json.dumps(recipe_of(2e-4)))
    (tmp_path / "same.json").write_text(json.dumps(recipe_of(1e-3)))
    add_trial(study, load_study_file("tiny.toml"), 8e-3, 0.35)
    assert run("--recipe", "mine.json", "--recipe", "same.json", "--rounds", "1") == 0
    found = confirmed()
    assert (found["trial"], found["name"]) == (None, "mine.json")
    names = [r["name"] for r in found["table"]]
    assert names == ["mine.json", "best 4", "best 3", "default", "best 1"]
    assert len(made) == 5 * 6
    chosen = choose(load_study(open_storage("sqlite:///tiny.db"), "tiny"), None, METHOD)
    assert chosen.recipe == recipe_of(2e-4)


# Once each


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_after_an_interruption_nothing_is_measured_twice(
    study: optuna.Study,
    calls: Calls,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    left = [5]

    def interrupt(_: Values) -> float:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
        return 1.5

    calls(interrupt)
    assert run("--rounds", "1") == code
    assert "the same command goes on from there" in capsys.readouterr().err
    assert CONFIRMED_KEY not in study.user_attrs
    first = kept(study)
    assert len(first) == 4

    made = calls(lambda _: 1.5)
    assert run("--rounds", "1") == 0
    assert len(made) == 4 * 6 - 4
    assert kept(study).items() >= first.items()
    assert "4 are known" in capsys.readouterr().err

    again = calls(lambda _: 1.5)
    before = confirmed()
    assert run("--rounds", "1") == 0
    assert again == []
    assert confirmed() == before


def test_where_the_table_can_not_be_made_calls_are_kept_as_attributes(
    study: optuna.Study, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StudyStorage, "keeps_calls", lambda self: False)
        made = calls(lambda _: 1.5)
        assert run("--rounds", "1") == 0
        assert len(made) == 4 * 6
        before = confirmed()
        assert sum(key.startswith(CALLS_PREFIX) for key in study.user_attrs) == 4 * 6
        made.clear()
        assert run("--rounds", "1") == 0
        assert made == []
        assert confirmed()["loss"] == before["loss"]
    assert kept(study) == {}


def test_what_another_process_has_measured_is_used(study: optuna.Study, calls: Calls) -> None:
    config = load_study_file("tiny.toml")
    problem = config.load_problem(None)
    other = Measurements(config, study, manifest_of(config), problem, METHOD)
    made: list[float] = []

    def meanwhile(recipe: Values) -> float:
        if not made:
            for unseen in problem.instances(held_out=True):
                for lr in (1e-3, 2e-3, 4e-3):
                    measured = Call(
                        instance=unseen.label,
                        loss=1.0 + lr,
                        standard_error=0.1,
                        seconds=1.0,
                        steps=3,
                    )
                    other.write(recipe_of(lr), unseen.label, measured)
        made.append(recipe["lr"])
        return 1.5

    calls(meanwhile)
    assert run("--rounds", "1") == 0
    # The call at hand is written over the other's; all others of those recipes are not made.
    assert len(made) <= 7
    assert sum(lr != 8e-3 for lr in made) <= 1


def test_what_other_code_measured_is_measured_again(
    study: optuna.Study, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    calls(lambda _: 1.5)
    assert run("--rounds", "1") == 0
    as_older_releases(study, basis="of other code")
    study.set_user_attr(MANIFEST_KEY, {**study.user_attrs[MANIFEST_KEY], "code": "0" * 12})
    capsys.readouterr()
    made = calls(lambda _: 1.5)
    assert run("--rounds", "1") == 0
    assert len(made) == 4 * 6
    assert "the search ran with other code (000000000000" in capsys.readouterr().err
    study.set_user_attr(MANIFEST_KEY, {**study.user_attrs[MANIFEST_KEY], "data": "other"})
    with pytest.raises(UserError, match="made with other data"):
        run()


def test_the_table_of_noise_is_not_the_searchs() -> None:
    config = load_study_file("quickstart")
    assert table_seed(config) != config.estimator.seed


# The limits of a call


def test_a_call_that_is_too_long_is_out_like_a_trials(
    study: optuna.Study, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    took = {1e-3: 11.0, 2e-3: 13.0}
    made = calls(lambda r: took.get(r["lr"], 9.0))
    assert run("--rounds", "1") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "a call took 11.0 s; 10 are allowed" in out
    assert "after 13.0 s, at step 1 (33% of the schedule)" in out
    assert made.count(1e-3) == made.count(2e-3) == 1
    found = confirmed()
    assert (found["name"], found["trial"]) == ("default", 2)
    assert {r["left"] for r in found["table"] if r["trial"] in (0, 3)} == {"infeasible"}
    calls(lambda r: 1.0)
    assert run("--rounds", "1") == 0  # what is kept is kept
    assert confirmed()["trial"] == 2


def test_when_nothing_is_feasible_nothing_is_confirmed(
    study: optuna.Study, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(_: Values) -> float:
        raise NotFiniteError("loss is nan at step 3")

    calls(explode)
    assert run("--top", "1") == 1
    assert "failed: no candidate kept the limits; default: " in capsys.readouterr().err
    assert CONFIRMED_KEY not in study.user_attrs


def test_a_bug_is_no_measurement(study: optuna.Study, calls: Calls) -> None:
    def stumble(_: Values) -> float:
        raise ZeroDivisionError

    calls(stumble)
    with pytest.raises(ZeroDivisionError):
        run()
    assert not kept(study)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top", "-1"], "--top is -1; write 0 or more"),
        (["--rounds", "0"], "--rounds is 0; write 1 or more"),
        (["--top", "0"], "no complete, feasible trial but the default recipe's"),
        (["--recipe", "none.json"], "none.json can't be read: No such file"),
        (["--storage", "sqlite:///no.db"], "no such database; start a worker"),
        (["--device", "gpu"], "--device is 'gpu'; write cpu, cuda or cuda:N"),
    ],
)
def test_bad_input_is_one_line(study: optuna.Study, arguments: Sequence[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        run(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_one_rune_can_say_is_said() -> None:
    known = Difference(
        name="default", digest="d", difference=-0.1, standard_error=0.01, low=-0.12, high=0.02
    )
    assert describe_difference(known).endswith("interval -0.1200 to +0.0200); not told apart")
    sure = known.model_copy(update={"high": -0.08})
    assert "not told apart" not in describe_difference(sure)
    single = known.model_copy(update={"low": None, "high": None})
    assert "of a single instance" in describe_difference(single)


def test_the_text_is_the_winner_and_a_table_of_candidates() -> None:
    row = {
        "name": "best 1",
        "trial": 17,
        "digest": "abc",
        "left": "finalist",
        "reason": None,
        "rounds": 3,
        "calls": 12,
        "longest_call_s": 79.04,
        "loss": 0.0812,
        "standard_error": 0.0031,
        "difference": -0.0031,
        "difference_error": 0.0006,
        "search_loss": 0.0750,
        "search_difference": -0.0052,
        "search_difference_error": 0.0009,
        "cost": 1.62,
    }
    default = {**row, "name": "default", "trial": None, "digest": "def", "loss": 0.0843}
    del default["cost"]  # as of a result that was stored before costs were measured
    default |= {"difference": None, "difference_error": None, "search_difference": None}
    tied = {**row, "name": "best 2", "trial": 3, "digest": "ghi", "left": "t", "rounds": 1}
    other = {"name": "default", "trial": None, "digest": "def", "difference": -0.0031}
    other |= {"standard_error": 0.0006, "low": -0.0047, "high": -0.0015}
    result = {
        **{k: row[k] for k in ("name", "trial", "digest", "loss", "standard_error", "cost")},
        "recipe": {},
        "units": 12,
        "instances": ["a"] * 12,
        "against": {"default": other, "runner_up": other},
        "table": [row, default, tied],
    }
    config = make_config(instances={"source": "omniglot"})
    text = to_terminal(confirmation_of(config, Confirmation.model_validate(result)))
    lines = text.splitlines()
    assert lines[:4] == [
        "Study s",
        "Trial 17 is the best one, measured again on 12 instances that no trial saw: loss 0.0812 ± "
        "0.0031, 6",
        "points by the author's table.",
        "Its loss minus the default recipe's: -0.0031 (95 % interval -0.0047 to -0.0015).",
    ]
    head = next(n for n, line in enumerate(lines) if line.startswith("    recipe "))
    assert lines[head : head + 4] == [
        "    recipe                        loss    to the default     in the search"
        "  longest call  steps  cost  rounds  left",
        "    best 1 (trial 17)  0.0812 ± 0.0031  -0.0031 ± 0.0006  -0.0052 ± 0.0009"
        "        79.0 s         1.62       3",
        "    default            0.0843 ± 0.0031                                    "
        "        79.0 s                    3",
        "    best 2 (trial 3)   0.0812 ± 0.0031  -0.0031 ± 0.0006  -0.0052 ± 0.0009"
        "        79.0 s         1.62       1  t",
    ]
