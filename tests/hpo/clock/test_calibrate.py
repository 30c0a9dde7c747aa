"""`hpo.calibrate`: times calls, fits the model, writes the profile."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpo.calibrate import main
from hpo.clock.profile import load_profile
from hpo.clock.timing import time_call
from hpo.errors import UserError
from hpo.problem.base import Called, Instance, OnStep, Values
from hpo.problem.calibration import calibration_instance
from hpo.problem.recipe_method import RecipeMethod
from hpo.process.signals import StopError
from tests.cheap import CheapInstance, CheapMethod, CheapProgress

METHOD = RecipeMethod()


class Counted:
    """A method whose steps take as long as a formula says, by no clock at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[int] = []
        self.stop_at: int | None = None
        monkeypatch.setattr(RecipeMethod, "call", self.call)

    def call(
        self,
        values: Values,
        instances: Sequence[Instance],
        on_step: OnStep,
        steps: Sequence[int] | None = None,
    ) -> list[Called]:
        if self.stop_at is not None and len(self.calls) == self.stop_at:
            raise StopError(2)
        self.calls.append(values["batch_size"])
        work = METHOD.workload(values, instances[0])
        startup_s = 0.5 + 0.1 * work.startup.get("pen drawings", 0)
        step_s = 0.01 + 0.001 * values["batch_size"] + 1e-4 * work.step.get("images warped", 0)
        for step in itertools.count(1):
            # The first ones are slow.
            late_s = startup_s + step * step_s + 0.01 * min(step, 4)
            on_step(0, CheapProgress(step, 0.5, 1.0, late_s))
        raise AssertionError


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, drawn_once: None) -> Counted:
    return Counted(monkeypatch)


def run(*arguments: Any) -> int:
    return main([*map(str, arguments), "--device", "cpu", "--precision", "fp32"])


def test_a_profile_is_written_and_predicts(
    tmp_path: Path, counted: Counted, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kept = tmp_path / "mine.toml", tmp_path / "kept.jsonl"
    few = ("--recipes", 40, "--check", 4, "--timings", kept)
    assert run("--out", out, *few, "--about", "a test") == 0
    assert "profile " in capsys.readouterr().out
    found = load_profile(str(out))
    assert found.precision == "fp32" and found.about == "a test" and found.machine["cores"]
    assert found.check is not None and found.check.recipes == 4
    assert found.check.step_largest_error < 0.01 and found.check.startup_largest_error < 0.05
    assert found.step["step"] == pytest.approx(0.01, rel=0.05)
    assert found.startup["pen drawings"] == pytest.approx(0.1, rel=0.05)
    # What was timed is not timed again, and the profile is the same.
    assert len(kept.read_text().splitlines()) == 44
    before = len(counted.calls)
    with pytest.raises(UserError, match="is there; write --force"):
        run("--out", out, *few)
    assert run("--out", out, *few, "--force", "--about", "a test") == 0
    assert len(counted.calls) == before + 1, "one call warms up"
    assert load_profile(str(out)) == found


def test_a_stop_leaves_what_was_timed(tmp_path: Path, counted: Counted) -> None:
    out, kept = tmp_path / "mine.toml", tmp_path / "kept.jsonl"
    counted.stop_at = 8
    assert run("--out", out, "--timings", kept) == 130
    assert not out.exists()
    assert len(kept.read_text().splitlines()) == 7
    assert all(json.loads(line)["step_s"] > 0 for line in kept.read_text().splitlines())
    kept.write_text("{}\n")
    with pytest.raises(UserError, match=r"kept\.jsonl:1 is no timing"):
        run("--out", out, "--timings", kept)


def test_what_can_not_be_written_is_told_first(tmp_path: Path, counted: Counted) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is no directory"):
        run("--out", tmp_path / "file" / "mine.toml")
    assert not counted.calls


def test_a_real_call_is_timed_and_ended_early(drawn_once: None) -> None:
    values = METHOD.complete(
        {"batch_size": 2, "render": "direct", "bank_images": 0, "train_groups": ["output"]}
    )
    found = time_call(METHOD, values, calibration_instance(2), 6)
    assert found is not None and found.step_s > 0 and found.startup_s > 0
    assert found.work.steps == 6000
    assert found.work.startup["images warped"] == 256 + 512
    assert "pen drawings" not in found.work.startup


def test_a_loss_that_is_not_finite_is_no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpo.problem.base import NotFiniteError

    def fail(*_: Any) -> Any:
        raise NotFiniteError

    monkeypatch.setattr(CheapMethod, "behave", staticmethod(fail))
    method = CheapMethod()
    assert time_call(method, method.complete({}), CheapInstance("r", 0, 0), 2) is None
