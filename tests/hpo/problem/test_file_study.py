"""A study of a person's file, from the search to the exported file, with real processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hpo.confirm.__main__ import main as confirm
from hpo.errors import UserError
from hpo.export.__main__ import main as export
from hpo.problem.user_file import runner
from hpo.report.__main__ import main as report
from hpo.storage.open import load_study, open_storage
from hpo.study.config import load_study_file
from hpo.study.create import create
from hpo.study.manifest import make_manifest
from hpo.trial.record import read_trial
from hpo.worker.__main__ import main as worker

pytestmark = pytest.mark.usefixtures("drawn_once")

# A network that answers a multiple of what it is asked: calls take milliseconds.
FILE = """\
import os, sys, torch

class Scaled(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x, t, c):
        return self.factor * x


def finetune_model(
    pretrained_model, train_dataset,
    factor=0.9,  # of the answers
    trouble="none",  # what goes wrong
    n_steps=4, report=None,
):
    print("trouble:", trouble)
    if trouble == "exit":
        os._exit(3)
    if trouble == "error":
        raise ValueError("of the file")
    if trouble == "loop":
        while True:
            pass
    if trouble == "nan":
        factor = float("nan")
    for step in range(1, n_steps + 1):
        (report or print)(step, 2.0 / step)
    return Scaled(factor)
"""
STUDY = """
name = "mine"
storage = "sqlite:///mine.db"
artifacts = "none"
limit_s = 2.0
margin_s = 0.5
[method]
file = "mine.py"
[instances]
source = "drawn"
runes = ["thorn", "ger"]
[estimator]
strata = 2
replicates = 2
[confirm]
runes = ["os", "ur"]
[pruner]
name = "none"
[sampler]
name = "random"
[space.factor]
type = "float"
low = 0.1
high = 0.8
[space.trouble]
type = "choice"
choices = ["none", "exit", "error", "loop", "nan"]
"""
STEPS = 'file = "mine.py"\nsteps = "n_steps"'
TROUBLES = {
    "none": ("complete", ""),
    "exit": ("crashed", "thorn/0: mine.py ended its process (exit code 3) before it returned"),
    "error": ("crashed", "thorn/0: mine.py line 22: ValueError: of the file"),
    "loop": ("out of time", "stopped on thorn/0 after "),
    "nan": ("not finite", "thorn/0: the loss on unseen drawings is nan"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the file and its study, from which commands start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hpo.worker.__main__.raise_on_signals", lambda: None)
    monkeypatch.setattr("hpo.confirm.__main__.raise_on_signals", lambda: None)
    (tmp_path / "mine.py").write_text(FILE)
    starts = "".join(
        f'[[start]]\nfactor = 0.{8 - i}\ntrouble = "{trouble}"\n'
        for i, trouble in enumerate(TROUBLES)
    )
    (tmp_path / "mine.toml").write_text(STUDY.replace("[space.factor]", f"{starts}[space.factor]"))
    return tmp_path


def search(trials: int) -> int:
    return worker(["--study", "mine.toml", "--trials", str(trials), "--threads", "1"])


def test_whatever_the_file_does_the_worker_goes_on(folder: Path) -> None:
    assert search(len(TROUBLES)) == 0
    trials = load_study(open_storage("sqlite:///mine.db"), "mine").get_trials()
    for trial, (trouble, (outcome, reason)) in zip(trials, TROUBLES.items(), strict=True):
        record = read_trial(trial)
        assert trial.params["trouble"] == trouble
        assert record.outcome == outcome
        assert record.reason.startswith(reason)
        if trouble in ("error", "loop", "exit"):
            assert (record.traceback or "").endswith(f"printed last:\ntrouble: {trouble}")
    good = read_trial(trials[0])
    assert good.instances[0].output == "trouble: none"
    assert good.instances[0].steps == 4
    # Its calls end by wall clock, so how fast this machine is stands beside them.
    assert good.machine is not None and (good.machine.speed or 0) > 1
    assert good.instances[0].curve[0] == 2.0 and good.instances[0].curve[-1] == 0.5

    assert report(["--study", "mine.toml", "--out", "story.html"]) == 0
    story = Path("story.html").read_text()
    assert "finetune_model raised an error, ended its process" in story


def test_the_winner_is_written_back_with_its_values_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.toml").write_text(
        STUDY.replace(', "exit", "error", "loop", "nan"', "") + "[[start]]\nfactor = 0.5\n"
    )
    assert search(2) == 0
    arguments = ["--study", "mine.toml", "--trial", "0"]
    capsys.readouterr()
    assert export([*arguments, "--diff"]) == 0
    diff = capsys.readouterr().out.splitlines()
    assert [line for line in diff if line.startswith(("-", "+"))][2:] == [
        "-    factor=0.9,  # of the answers",
        "+    factor=0.5,  # of the answers",
    ]
    assert export([*arguments, "--out", "out.py", "--held-out", "1", "--t-samples", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "1 value of mine.py changed, and nothing else: factor"
    assert said[1].startswith("thorn/0: loss ")
    assert said[1].endswith("4 steps; the trial's, bit for bit")
    assert Path("out.py").read_text() == FILE.replace("factor=0.9", "factor=0.5")
    # Another file is another study.
    (folder / "mine.py").write_text(FILE.replace("self.factor * x", "self.factor * x * 2"))
    with pytest.raises(UserError, match="study mine measured with other code"):
        export([*arguments, "--out", "out2.py"])
    with pytest.raises(UserError, match="study mine was made with other code"):
        search(3)


def test_a_study_of_two_speeds_looks_at_a_share_of_the_steps_first(folder: Path) -> None:
    """What counts is the loss at full length, and the winner is proved at that."""
    (folder / "mine.toml").write_text(
        STUDY.replace('file = "mine.py"', STEPS)
        .replace('runes = ["thorn", "ger"]', 'runes = ["thorn"]\nspeeds = [0.5, 1.0]')
        .replace(', "exit", "error", "loop", "nan"', "")
    )
    assert search(2) == 0
    trials = load_study(open_storage("sqlite:///mine.db"), "mine").get_trials()
    for trial in trials:
        record = read_trial(trial)
        assert [c.instance for c in record.instances] == ["thorn/0*0.5", "thorn/0*1"]
        assert [c.steps for c in record.instances] == [2, 4]
        assert trial.value == record.instances[1].loss
    arguments = ["--study", "mine.toml", "--trial", "0", "--out", "better.py", "--no-challenge"]
    assert export([*arguments, "--threads", "1"]) == 0


def test_values_that_the_file_does_not_have_are_refused(folder: Path) -> None:
    for old, new, message in [
        ("[space.factor]", "[space.fraction]", "fields are factor, trouble, n_steps"),
        ("low = 0.1", 'low = "a"', "wrong.toml: space.factor.low is 'a'"),
        ('file = "mine.py"', 'file = "none.py"', "none.py: no such file; name a Python file with"),
        ('file = "mine.py"', 'file = "mine.py"\nsteps = "factor"', "method.steps is 'factor'; wri"),
        (
            "[instances]",
            '[clock]\nmachine = "m"\n[instances]',
            'time, end by wall clock; write "wall"',
        ),
        ('file = "mine.py"', 'name = "recipe"\nsteps = "n_steps"', "steps is of a file; write fil"),
        ('file = "mine.py"', 'file = "mine.py"\nparameters = "constants"', "no parameters of the"),
    ]:
        Path("wrong.toml").write_text(STUDY.replace(old, new))
        with pytest.raises(UserError) as error:
            load_study_file("wrong.toml")
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_files_race_and_the_broken_ones_stand_at_the_end(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_study_file("mine.toml")
    create(config, config.storage, make_manifest(config, config.load_problem(None)))
    for name, factor in (("good", 0.5), ("better", 0.6), ("worse", -4.0)):
        Path(f"{name}.py").write_text(FILE.replace("0.9", str(factor)))
    Path("broken.py").write_text("def finetune_model(:\n")
    Path("raises.py").write_text(FILE.replace('"none"', '"error"'))
    names = ("good", "better", "worse", "broken", "raises")
    arguments = ["--study", "mine.toml", "--threads", "1", "--json"]
    arguments += [a for name in names for a in ("--submission", f"{name}.py")]
    assert confirm(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["baseline"] == "good.py"
    assert len(first["instances"]) == 2
    places = {place["name"]: place for place in first["places"]}
    assert [p["name"] for p in first["places"]][:2] in (
        ["better.py", "good.py"],
        ["good.py", "better.py"],
    )
    assert places["better.py"]["low"] < places["better.py"]["difference"]
    assert places["worse.py"]["loss"] > places["good.py"]["loss"]
    assert places["broken.py"]["left"] == places["raises.py"]["left"] == "infeasible"
    assert places["broken.py"]["reason"] == "broken.py line 1 is not Python: invalid syntax"
    assert "raises.py line 22: ValueError: of the file" in places["raises.py"]["reason"]
    # What was measured is read.
    assert confirm(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    # Which of its instances put a file out first is a matter of chance.
    measured = [[p for p in board["places"] if p["loss"] is not None] for board in (first, again)]
    assert measured[0] == measured[1]
    assert len(measured[0]) == 3
    assert confirm([a for a in arguments if a != "--json"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "has the lowest loss on 2 instances" in table
    assert "raises.py: os/0 bilinear: raises.py line 22" in table or "raises.py: ur/0" in table
    with pytest.raises(UserError, match="--submission is there once; name two files"):
        confirm(["--study", "mine.toml", "--submission", "good.py"])


def test_no_password_reaches_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner.stop_server()
    monkeypatch.setenv("RUNES_STORAGE", "sqlite:///mine.db")
    leaky = FILE.replace(
        'print("trouble:", trouble)', 'print([k for k in os.environ if "RUNES" in k])'
    )
    (folder / "mine.py").write_text(leaky)
    assert search(1) == 0
    assert "RUNES_STORAGE" in os.environ
    trial = load_study(open_storage("sqlite:///mine.db"), "mine").get_trials()[0]
    assert read_trial(trial).instances[0].output == "[]"
    runner.stop_server()
