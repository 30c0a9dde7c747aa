"""Proof that a submission reproduces a trial: it is run in a clean interpreter.

There are two runs.  Neither sees the drawings to score on before its call is over:

- A short run, compared with one of the project's own modules, on the CPU.  All weights, and the
  outputs of the returned networks, must be equal bit for bit, on any machine.
- The whole call on an instance of the trial.  The returned network is scored in its own
  interpreter.  Its loss must be the trial's: bit for bit on the trial's machine with the trial's
  number of threads, and within the errors elsewhere.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.runes import NEW_LABEL, Split
from ..recipe import Recipe
from ..scoring.estimators import LossTable, NoiseTable, estimate
from .imports import module_source
from .joining import imported_packages

_SCRIPT = Path(__file__).with_name("sandbox.py")
_SHORT_STEPS = 5
_NO_DEADLINE_S = 1e6  # longest deadline of a recipe
_START_S = 120.0  # timeout for an interpreter to import torch, on a busy machine
_POLL_S = 0.2
# Allowed difference of two losses on the same noise, in standard errors, as if independent.
_ERRORS = 3.0
_TIMES = (0.0, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.99)
_Question = tuple[Tensor, Tensor, Tensor]  # x_t, t and c


class ProofError(Exception):
    """The submission does not reproduce its claims.  The message is one line that says why."""


class Instance(Protocol):
    """What one call is measured on."""

    @property
    def label(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def pretrained(self) -> nn.Module: ...
    @property
    def split(self) -> Split: ...


@dataclass(frozen=True)
class Claim:
    """What a trial measured on an instance."""

    loss: float
    standard_error: float
    steps: int


@dataclass(frozen=True)
class Proof:
    """The result of the whole call."""

    loss: LossTable
    seconds: float
    steps: int  # of each network
    exact: bool  # whether it has the trial's loss bit for bit


def check_imports(submission: Path) -> None:
    """Check that the file imports only torch and the standard library.

    Raises:
        ProofError: it imports something else, or is not Python.
    """
    try:
        foreign = sorted(set(imported_packages(submission.read_text("utf-8"))) - {"torch"})
    except SyntaxError as error:
        raise ProofError(f"the file is not Python: {error}") from error
    if foreign:
        raise ProofError(f"the file imports {', '.join(foreign)}")


def check_same_source(submission: Path, recipe: Recipe, instance: Instance) -> None:
    """Check that a few steps of the file and of the project's own modules give equal weights.

    Raises:
        ProofError: the weights or the recipes differ, or one of the two does not run.
    """
    # A short run must depend neither on the clock nor on a measurement of speed.
    short = {
        "steps": min(recipe.steps, _SHORT_STEPS),
        "deadline_s": _NO_DEADLINE_S,
        "precision": "fp32",
    }
    case = _case(recipe, instance, 1, short)
    on_cpu = {"CUDA_VISIBLE_DEVICES": ""}
    limit_s = _START_S + 10 * recipe.deadline_s
    questions = _questions(NEW_LABEL) + _questions(0)
    ran = [
        _run(path, case, questions, limit_s, f"{what}, {short['steps']} steps", on_cpu)
        for path, what in ((submission, "the file"), (None, "its modules"))
    ]
    for name, value in ran[0]["recipe"].items():
        wanted = getattr(recipe, name, None)
        if value != wanted:
            raise ProofError(f"the file's {name} is {value!r}, and the recipe's {wanted!r}")
    ours, theirs = ran[0]["state"], ran[1]["state"]
    differ = [k for k in theirs if k not in ours or not torch.equal(ours[k], theirs[k])]
    if differ or ours.keys() != theirs.keys():
        what = differ[0] if differ else "names of parameters"
        raise ProofError(
            f"after {short['steps']} steps the file's weights are not those of the modules that "
            f"it was made from: {what} differs"
        )
    pairs = zip(ran[0]["answers"], ran[1]["answers"], strict=True)
    if not all(torch.equal(a, b) for a, b in pairs):
        raise ProofError(
            f"after {short['steps']} steps the file's network has the weights of its modules' but "
            "answers otherwise"
        )


def _questions(label: int) -> list[_Question]:
    """Inputs for the networks: noise and zeros under a label, at several times."""
    numbers = torch.Generator().manual_seed(0)
    x_t = torch.randn(len(_TIMES), 1, 28, 28, generator=numbers)
    t = torch.tensor(_TIMES)[:, None, None, None]
    c = torch.full((len(_TIMES),), label)
    return [(x_t, t, c), (torch.zeros_like(x_t), t, c)]


def check_call(
    submission: Path,
    recipe: Recipe,
    instance: Instance,
    table: NoiseTable,
    limit_s: float,
    claim: Claim | None = None,
    steps: int | None = None,
) -> Proof:
    """Make the whole call in a clean interpreter, and compare its loss with the trial's.

    Args:
        steps: number of steps of the call, however long they take; None: by its own clock.

    Raises:
        ProofError: the call does not run, takes too long, or has another loss.
    """
    overrides: dict[str, Any] = {} if recipe.seed == instance.seed else {"seed": instance.seed}
    if steps is not None:
        overrides |= {"steps": steps, "deadline_s": _NO_DEADLINE_S}
    case = _case(recipe, instance, torch.get_num_threads(), overrides)
    what = f"the whole call on {instance.label}"
    # The first evaluation collects the questions, the second uses the answers.
    asked = _Answering()
    estimate(asked, instance.split.test, NEW_LABEL, table)
    ran = _run(submission, case, asked.questions, _START_S + limit_s, what, {})
    if ran["seconds"] > limit_s:
        raise ProofError(f"the call took {ran['seconds']:.1f} s; the limit is {limit_s:g} s")
    loss = estimate(_Answering(ran["answers"]), instance.split.test, NEW_LABEL, table)
    exact = claim is not None and loss.mean == claim.loss
    if not math.isfinite(loss.mean):
        raise ProofError(f"the loss on {instance.label} is {loss.mean}")
    if claim is not None and not exact:
        allowed = _ERRORS * math.hypot(claim.standard_error, loss.standard_error)
        if not abs(loss.mean - claim.loss) <= allowed:
            raise ProofError(
                f"the file's loss on {instance.label} is {loss.mean:.6f} in {ran['steps']} steps, "
                f"and the trial's was {claim.loss:.6f} in {claim.steps}: "
                f"more than {allowed:.6f} apart"
            )
    return Proof(loss=loss, seconds=ran["seconds"], steps=ran["steps"], exact=exact)


class _Answering(nn.Module):
    """Stands for a network in another process: records inputs, returns given answers or zeros."""

    def __init__(self, answers: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))  # it is on the CPU
        self.questions: list[_Question] = []
        self._answers = answers

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        self.questions.append((x_t, t, c))
        if self._answers is None:
            return torch.zeros_like(x_t)
        answer = self._answers[len(self.questions) - 1]
        if answer.shape != x_t.shape:
            raise ProofError(f"the returned network answers {tuple(answer.shape)} to {x_t.shape}")
        return answer


def _case(
    recipe: Recipe, instance: Instance, threads: int, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The case for the script, without the drawings to score on."""
    return {
        "network": module_source("model.unet"),
        "state": instance.pretrained.state_dict(),
        "train": instance.split.train.clone(),
        "threads": threads,
        "recipe": recipe.to_dict(),
        "overrides": dict(overrides),
        "project": str(Path(__file__).parents[2]),
    }


def _run(
    submission: Path | None,
    case: Mapping[str, Any],
    questions: Sequence[_Question],
    limit_s: float,
    what: str,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Run the script; returns its report, with the network's answers to ``questions``.

    Raises:
        ProofError: the script failed, hung, or did something forbidden.
    """
    arguments = [str(submission.resolve()) if submission else "", "case.pt"]
    command = [sys.executable, "-I", "-B", str(_SCRIPT), *arguments]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        file = directory / "questions.pt"
        torch.save({**case, "questions": str(file)}, directory / "case.pt")
        out, err = (stack.enter_context((directory / n).open("w+b")) for n in ("out", "err"))
        child = subprocess.Popen(
            command, cwd=directory, env={**os.environ, **environment}, stdout=out, stderr=err
        )
        stack.callback(child.wait)
        stack.callback(child.kill)
        bar = tqdm(desc=what, disable=None, leave=False, bar_format="{desc}: {elapsed}")
        stack.enter_context(bar)
        start = time.monotonic()
        while child.poll() is None:
            if not file.exists() and len(_messages(directory / "out")) == 1:
                # Written only now, because the call must not see the drawings to score on.
                torch.save(list(questions), directory / "part")
                (directory / "part").rename(file)
                limit_s += _START_S
            time.sleep(_POLL_S)
            bar.refresh()
            if time.monotonic() - start > limit_s:
                raise ProofError(f"{what} did not end within {limit_s:.0f} s")
        messages, words = _messages(directory / "out"), (directory / "err").read_text("utf-8")
    if child.returncode != 0 or len(messages) != 2:
        last = (words.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise ProofError(f"{what} failed in a clean interpreter: {last}")
    report: dict[str, Any] = {}
    for message in messages:
        report |= torch.load(BytesIO(message), weights_only=True)
    if report["refused"]:
        raise ProofError(f"{what} did what a submission must not do: {report['refused'][0]}")
    if submission and report["said"]:
        raise ProofError(f"{what} printed {report['said'].splitlines()[0]!r}")
    return report


def _messages(path: Path) -> list[bytes]:
    """The complete messages of what the script has written so far."""
    data, found = path.read_bytes(), []
    while len(data) >= 8 and len(data) >= 8 + (n := int.from_bytes(data[:8], "big")):
        found.append(data[8 : 8 + n])
        data = data[8 + n :]
    return found


def describe(
    proof: Proof, claim: Claim | None, recipe: Recipe, label: str, planned: bool = False
) -> Sequence[str]:
    """Lines for people: what was compared, and how well it agrees.

    Args:
        planned: whether a reference clock set the steps of both calls.
    """
    made = f"{proof.steps} steps" + (" by the study's reference clock" if planned else "")
    call = f"{proof.seconds:.1f} s, {made}"
    if claim is None:
        return [f"{label}: loss {proof.loss}, {call}; no trial to compare with"]
    if proof.exact:
        return [f"{label}: loss {proof.loss}, {call}; the trial's, bit for bit"]
    lines = [
        f"{label}: loss {proof.loss}, {call}; the trial had {claim.loss:.4f} ± "
        f"{claim.standard_error:.4f}: the same within their errors"
    ]
    if not planned and min(claim.steps, proof.steps) < recipe.steps:
        lines.append(
            f"the clock cut a schedule of {recipe.steps} steps (to {claim.steps} in the trial, "
            f"{proof.steps} here), so the two can't agree bit for bit"
        )
    else:
        lines.append("bit for bit holds only on the trial's machine, with its threads")
    return lines
