"""The author's run(): points, seeds, verdicts, pictures."""

from __future__ import annotations

import copy
import json
import random
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from finetune import challenge
from finetune.challenge import (
    CallScore,
    ChallengeFailure,
    earns_points,
    grader_seconds,
    load_submission,
    main,
    points,
    run_call,
    run_challenge,
    score_call,
    set_seed,
    table,
)
from finetune.data.runes import RuneSource, split_drawings
from finetune.data.synthetic import draw_rune
from finetune.errors import UserError, run_command
from finetune.model.checkpoints import list_networks
from finetune.model.groups import add_class
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.scoring.cost import measure_cost

SUBMISSION = """
import torch

def finetune_model(pretrained_model, train_dataset):
    row = pretrained_model.class_embedding.weight.detach().mean(0, keepdim=True)
    weight = torch.cat([pretrained_model.class_embedding.weight.detach(), row])
    pretrained_model.class_embedding = torch.nn.Embedding.from_pretrained(weight)
    return pretrained_model
"""

pytestmark = pytest.mark.usefixtures("drawn_once", "few_passes")


@pytest.fixture
def few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of an answer has tests of its own (scoring/test_cost.py)."""
    monkeypatch.setattr("finetune.scoring.cost.measure_cost", partial(measure_cost, passes=4))


def mean_class(model: nn.Module, dataset: Any) -> nn.Module:
    add_class(model)
    return model


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        *[(0.151, 0), (0.150, 1), (0.1201, 1), (0.12, 2), (0.1, 3), (0.094, 4), (0.0881, 4)],
        *[(0.088, 5), (0.0831, 5), (0.083, 6), (0.05, 6)],
    ],
)
def test_points_are_the_authors(loss: float, expected: int) -> None:
    assert points(loss) == expected


def test_set_seed_fixes_every_global_stream() -> None:
    def draw() -> tuple[float, float, float]:
        set_seed(43)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


def test_calls_have_seed_42_plus_i_and_network_i(drawn: RuneSource) -> None:
    seen = []

    def spy(model: nn.Module, dataset: Any) -> nn.Module:
        seen.append((torch.initial_seed(), len(dataset), dataset[0][1]))
        return mean_class(model, dataset)

    networks = list_networks()[:1]
    scores = run_challenge(spy, drawn, ["thorn", "os"], networks, t_samples=2)
    assert seen == [(43, 10, 10), (44, 10, 10)]
    assert [(s.rune, s.seed, s.network) for s in scores] == [
        ("thorn", 43, networks[0].stem),
        ("os", 44, networks[0].stem),
    ]


def test_the_same_submission_scores_the_same_twice(drawn: RuneSource) -> None:
    def once() -> float:
        (score,) = run_challenge(mean_class, drawn, ["thorn"], list_networks(), t_samples=3)
        return score.loss

    assert once() == once()


def test_a_call_over_the_limit_fails_loudly(drawn: RuneSource) -> None:
    def slow(model: nn.Module, dataset: Any) -> nn.Module:
        time.sleep(0.05)
        return model

    train = split_drawings(drawn.drawings("thorn"), 0).train
    with pytest.raises(ChallengeFailure, match=r"took 0\.\d s; the limit is 0.01 s"):
        run_call(slow, nn.Identity(), train, 43, limit_s=0.01)


@pytest.mark.parametrize("returned", [None, 3.0, {"a": 1}])
def test_returning_no_model_fails_loudly(drawn: RuneSource, returned: Any) -> None:
    train = split_drawings(drawn.drawings("thorn"), 0).train
    with pytest.raises(ChallengeFailure, match="a model is wanted"):
        run_call(lambda model, dataset: returned, nn.Identity(), train, 43)


def test_a_model_without_the_new_class_or_with_nan_fails_loudly(drawn: RuneSource) -> None:
    test = split_drawings(drawn.drawings("thorn"), 0).test
    model = ConditionalDiffusionUNet()
    with pytest.raises(ChallengeFailure, match="can't be scored"):
        score_call(copy.deepcopy(model), test, 2)
    mean_class(model, None)
    nn.init.constant_(model.conv_out.bias, float("nan"))
    with pytest.raises(ChallengeFailure, match="loss is nan"):
        score_call(model, test, 2)


def test_the_command_scores_a_file_and_draws_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submission, picture = tmp_path / "mine.py", tmp_path / "sheet.png"
    submission.write_text(SUBMISSION)
    arguments = ["--submission", str(submission), "--source", "drawn", "--t-samples", "2"]
    code = main([*arguments, "--runes", "thorn", "--json", "--picture", str(picture)])
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["points"] is None, "they are for Omniglot's Futhorc"
    assert [call["rune"] for call in report["calls"]] == ["thorn"]
    (call,) = report["calls"]
    assert 0.5 < call["cost"] < 2, "it returned a plain network"
    assert report["cost"] == call["cost"]
    assert report["grader_s"] == pytest.approx(call["seconds"] + 1000 * call["pass_s"])
    sheet = np.asarray(Image.open(picture))
    assert sheet.shape == (3 * 30 * 3, 10 * 30 * 3)  # real, before, after; ten each; threefold


def test_the_table_tells_what_an_answer_costs_and_how_long_grading_takes() -> None:
    scores = [
        CallScore("thorn", "unet_1", 43, 0.08, 0.001, 30.0, 1.5, 0.02, n_train=10),
        CallScore("character_of_a_long_name", "unet_1", 44, 0.09, 0.001, 40.0, 2.5, 0.03, 10),
    ]
    header, first, second, mean, *_, last = table(scores, with_points=True).splitlines()
    assert grader_seconds(scores) == pytest.approx(30 + 20 + 40 + 30)
    assert "the whole grading takes 120 s" in last
    end = header.index("cost") + len("cost")
    for line, cost in ((first, "1.50"), (second, "2.50"), (mean, "2.00")):
        assert line[:end].endswith(cost)
    assert (first.split()[-1], second.split()[-1], mean.split()[-1]) == ("6", "4", "5")
    without = table(scores, with_points=False)
    assert [line.split()[-1] for line in without.splitlines()[1:4]] == ["–"] * 3
    assert "no points: " in without


@pytest.mark.parametrize(
    ("name", "n_train", "expected"),
    [
        ("omniglot", 10, True),
        ("omniglot", 5, False),
        ("omniglot Korean", 10, False),
        ("drawn", 10, False),
        ("drawings", 10, False),
    ],
)
def test_only_ten_drawings_of_the_futhorc_earn_points(
    drawn: RuneSource, name: str, n_train: int, expected: bool
) -> None:
    score = CallScore("thorn", "unet_1", 43, 0.08, 0.001, 30.0, 1.5, 0.02, n_train)
    assert earns_points(replace(drawn, name=name), [score, score]) is expected


def test_another_number_of_drawings_learns(drawn: RuneSource) -> None:
    seen = []

    def spy(model: nn.Module, dataset: Any) -> nn.Module:
        seen.append(len(dataset))
        return mean_class(model, dataset)

    networks = list_networks()[:1]
    (score,) = run_challenge(spy, drawn, ["thorn"], networks, n_train=17, t_samples=2)
    assert seen == [17]
    assert score.n_train == 17
    with pytest.raises(UserError, match=r"thorn: train is 20, .* write 1 to 19"):
        run_challenge(spy, drawn, ["thorn"], networks, n_train=20, t_samples=2)
    assert seen == [17], "it comes out before the first call"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of a person's drawings: two runes, of four and of three."""
    for name, n in (("sun", 4), ("moon", 3)):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i, drawing in enumerate(draw_rune("thorn", n, 3)):
            path = tmp_path / "mine" / name / f"{i}.png"
            Image.fromarray(((1 - drawing) * 255).numpy()).save(path)
    return tmp_path / "mine"


def test_the_command_scores_a_folder_of_drawings(
    tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submission, picture = tmp_path / "mine.py", tmp_path / "sheet.png"
    submission.write_text(SUBMISSION)
    arguments = ["--submission", str(submission), "--t-samples", "2", "--train", "2"]
    code = main([*arguments, "--drawings", str(mine), "--json", "--picture", str(picture)])
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (report["source"], report["points"]) == ("drawings", None)
    assert [(c["rune"], c["n_train"]) for c in report["calls"]] == [("moon", 2), ("sun", 2)]
    assert all(c["standard_error"] >= 0 for c in report["calls"]), "of one drawing, too"
    assert picture.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--drawings", "{}/none"], ["{}/none: no such folder", "--drawings"]),
        (["--drawings", "{}", "--train", "3"], ["moon: train is 3, ", "of 3 drawings", "1 to 2"]),
        (["--drawings", "{}", "--train", "0"], ["argument --train: 0 is not in 1 to"]),
        (["--drawings", "{}", "--alphabet", "Greek"], ["--alphabet and --drawings"]),
        (["--drawings", "{}", "--source", "drawn"], ["--source drawn and --drawings"]),
        (["--source", "drawn", "--alphabet", "Greek"], ["--source drawn and --alphabet"]),
    ],
)
def test_a_mistake_with_drawings_is_one_line_and_exit_code_2(
    mine: Path,
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = ["challenge", *(a.format(mine) for a in arguments)]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: ")
    for word in words:
        assert word.format(mine) in line


def test_a_failing_submission_is_a_verdict_and_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submission = tmp_path / "mine.py"
    arguments = ["--submission", str(submission), "--source", "drawn", "--runes", "thorn"]
    for line, told in (
        ("raise ValueError('no')", "ValueError: no"),
        ("sys.exit(0)", "SystemExit: 0"),
        ("[][7]", "IndexError: list index out of range"),
    ):
        submission.write_text(f"import sys\ndef finetune_model(model, data):\n    {line}\n")
        assert main(arguments) == 1
        said = f"failed: thorn: finetune_model raised {told} ({submission}:3)\n"
        assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import sys\nsys.exit(0)", r"does not import: SystemExit: 0 \(.*mine.py:2\)$"),
        ("\n1 / 0", r"does not import: ZeroDivisionError: division by zero \(.*mine.py:2\)$"),
        ("def f(:", r"does not import: SyntaxError: .*mine.py, line 1\)$"),
    ],
)
def test_a_submission_that_does_not_import_says_where(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=told):
        load_submission(tmp_path / "mine.py")


def test_what_a_submission_prints_does_not_spoil_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from finetune.model.groups import with_mean_class\nprint('imported')\n"
        "def finetune_model(model, data):\n    print('called')\n    return with_mean_class(model)\n"
    )
    arguments = ["--submission", str(tmp_path / "mine.py"), "--source", "drawn", "--json"]
    assert main([*arguments, "--runes", "thorn", "--t-samples", "2"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["calls"][0]["rune"] == "thorn"
    assert "imported" in err and "called" in err


def test_a_picture_that_cannot_be_written_is_told_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.challenge.run_call", lambda *_: pytest.fail("it was scored"))
    (tmp_path / "file").touch()
    for picture, told in (
        (tmp_path, "is a directory"),
        (tmp_path / "file" / "x.png", "is no directory"),
        (Path("/dev/null"), "is no regular file"),
    ):
        with pytest.raises(UserError, match=f"--picture: .*{told}"):
            main(["--source", "drawn", "--runes", "thorn", "--picture", str(picture)])


def test_a_network_is_scored_by_what_it_answers_at_every_time() -> None:
    class Wrong(nn.Module):
        """Right but for the smallest times, where few would look."""

        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            return torch.where(t < 0.2, 100.0, 0.0).expand_as(x)

    images = torch.zeros(2, 1, 28, 28)
    loss, _ = score_call(Wrong(), images, t_samples=400)
    # With x = 0 the velocity is e, of variance 1; a fifth of all times answers 100.
    assert loss == pytest.approx(1 + 0.2 * 100**2, rel=0.15)


@pytest.mark.parametrize(
    ("source", "message"),
    [("x = 1\n", "defines no finetune_model"), ("import nonsense_\n", "does not import")],
)
def test_a_file_that_is_no_submission(tmp_path: Path, source: str, message: str) -> None:
    submission = tmp_path / "mine.py"
    submission.write_text(source)
    with pytest.raises(UserError, match=message):
        main(["--submission", str(submission), "--source", "drawn"])


def test_an_unknown_rune_lists_those_there_are() -> None:
    with pytest.raises(UserError, match="no rune 'x'; write some of"):
        main(["--source", "drawn", "--runes", "x"])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_goes_on_while_a_call_takes_minutes(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    redrawn = threading.Semaphore(0)

    class Bar:
        def refresh(self) -> None:
            redrawn.release()

        def close(self) -> None:
            pass

    monkeypatch.setattr(challenge, "_TICK_S", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with challenge._ticking(Bar()):
        for _ in range(3):
            assert redrawn.acquire(timeout=60 if terminal else 0.1) == terminal
