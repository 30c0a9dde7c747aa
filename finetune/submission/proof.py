"""Proof that a submission is what a trial measured: it is run where nothing else is.

Two runs in clean interpreters, neither of which sees the drawings that are scored on:

- a short one beside the project's own modules, on the CPU: all weights must be the same, bit
  for bit, on whichever machine;
- the whole call on an instance of the trial, whose loss must be the trial's: bit for bit on
  the machine and with the threads of the trial, within the errors elsewhere.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.runes import NEW_LABEL, Split
from ..model.unet import ConditionalDiffusionUNet
from ..predict.bank import ImageBank
from ..predict.ensemble import VelocityMean
from ..predict.levels import GreyLevels
from ..predict.posterior import LevelPosterior
from ..recipe import Recipe
from ..scoring.estimators import LossTable, NoiseTable, estimate
from .imports import module_source
from .joining import imported_packages

_SCRIPT = Path(__file__).with_name("sandbox.py")
_SHORT_STEPS = 5
_START_S = 120.0  # that an interpreter may take to import torch, on a busy machine
_POLL_S = 0.2
# Of the difference of two losses on one table of noise, as if their errors were independent.
_ERRORS = 3.0


class ProofError(Exception):
    """The submission is not what it claims to be.  The message is one line that says why."""


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
    """What the whole call gave."""

    loss: LossTable
    seconds: float
    steps: int  # of each network
    members: int  # networks whose mean answers
    exact: bool  # the trial's loss, bit for bit


def check_imports(submission: Path) -> None:
    """The file imports torch and the standard library, and nothing else.

    Raises:
        ProofError: it imports something else, or is no Python.
    """
    try:
        foreign = sorted(set(imported_packages(submission.read_text("utf-8"))) - {"torch"})
    except SyntaxError as error:
        raise ProofError(f"the file is not Python: {error}") from error
    if foreign:
        raise ProofError(f"the file imports {', '.join(foreign)}")


def check_same_source(submission: Path, recipe: Recipe, instance: Instance) -> None:
    """A few steps of the file and of the project's own modules give the same weights.

    Raises:
        ProofError: they differ, or the file's recipe is another, or one of them does not run.
    """
    # A short run must not depend on the clock, nor on a measurement of speed.
    short = {"steps": min(recipe.steps, _SHORT_STEPS), "deadline_s": 1e6, "precision": "fp32"}
    case = _case(recipe, instance, 1, short)
    on_cpu = {"CUDA_VISIBLE_DEVICES": ""}
    limit_s = _START_S + 10 * recipe.deadline_s
    with tempfile.TemporaryDirectory() as directory:
        ran = [
            _run(path, case, Path(directory), limit_s, f"{what}, {short['steps']} steps", on_cpu)
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


def check_call(
    submission: Path,
    recipe: Recipe,
    instance: Instance,
    table: NoiseTable,
    limit_s: float,
    claim: Claim | None = None,
) -> Proof:
    """The whole call in a clean interpreter, scored here, against what the trial measured.

    Raises:
        ProofError: it does not run, takes too long, or has another loss.
    """
    overrides = {} if recipe.seed == instance.seed else {"seed": instance.seed}
    case = _case(recipe, instance, torch.get_num_threads(), overrides)
    with tempfile.TemporaryDirectory() as directory:
        what = f"the whole call on {instance.label}"
        ran = _run(submission, case, Path(directory), _START_S + limit_s, what, {})
    if ran["seconds"] > limit_s:
        raise ProofError(f"the call took {ran['seconds']:.1f} s; the limit is {limit_s:g} s")
    model = _returned(ran["state"], recipe)
    members = len(model.members) if isinstance(model, VelocityMean) else 1
    loss = estimate(model, instance.split.test, NEW_LABEL, table)
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
    return Proof(
        loss=loss, seconds=ran["seconds"], steps=ran["steps"], members=members, exact=exact
    )


def _case(
    recipe: Recipe, instance: Instance, threads: int, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """What the script is told; the drawings that are scored on are not part of it."""
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
    directory: Path,
    limit_s: float,
    what: str,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """The script's report.

    Raises:
        ProofError: it failed, hung, or did what it must not do.
    """
    case_path = directory / "case.pt"
    torch.save(dict(case), case_path)
    arguments = [str(submission.resolve()) if submission else "", str(case_path)]
    command = [sys.executable, "-I", "-B", str(_SCRIPT), *arguments]
    with (directory / "out").open("w+b") as out, (directory / "err").open("w+b") as err:
        start = time.monotonic()
        child = subprocess.Popen(
            command, cwd=directory, env={**os.environ, **environment}, stdout=out, stderr=err
        )
        try:
            with tqdm(desc=what, disable=None, leave=False, bar_format="{desc}: {elapsed}") as bar:
                while child.poll() is None:
                    time.sleep(_POLL_S)
                    bar.refresh()
                    if time.monotonic() - start > limit_s:
                        raise ProofError(f"{what} did not end within {limit_s:.0f} s")
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        out.seek(0)
        err.seek(0)
        packed, words = out.read(), err.read().decode(errors="replace")
    if child.returncode != 0:
        last = (words.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise ProofError(f"{what} failed in a clean interpreter: {last}")
    report: dict[str, Any] = torch.load(BytesIO(packed), weights_only=True)
    if report["refused"]:
        raise ProofError(f"{what} did what a submission must not do: {report['refused'][0]}")
    if submission and report["said"]:
        raise ProofError(f"{what} printed {report['said'].splitlines()[0]!r}")
    return report


def _returned(state: Mapping[str, Tensor], recipe: Recipe) -> nn.Module:
    """What the call returned, rebuilt of the project's own classes."""
    try:
        has_bank = recipe.output == "levels" and recipe.bank_limit
        bank = ImageBank(state["bank.images"], recipe.bank_limit) if has_bank else None
        first, *others = _parts(state)
        if not others:
            return _network(first, recipe, bank).eval()
        members = [_network(part, recipe, None) for part in (first, *others)]
    except (KeyError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ProofError(f"what the file returns is not the course's network: {why}") from error
    return VelocityMean(members, bank).eval()


def _parts(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The states of an ensemble's members; of one network alone, its own."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("members."):
            _, member, name = key.split(".", 2)
            parts.setdefault(member, {})[name] = value
    return list(parts.values()) or [dict(state)]


def _network(state: Mapping[str, Tensor], recipe: Recipe, bank: ImageBank | None) -> nn.Module:
    """One network, with its head where it has one, and a bank of its own if it has that."""
    prefix = "network."
    inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    label = len((inner or state)["class_embedding.weight"]) - 1
    model: nn.Module = ConditionalDiffusionUNet(n_classes=label + 1)
    # With the memory format that the call chose, which rounding depends on.
    model.load_state_dict(inner or dict(state), strict=True, assign=True)
    if inner:
        levels = GreyLevels(state["means"], state["variances"], state["log_prior"])
        model = LevelPosterior(model, levels, label, recipe.views, recipe.head_hidden)
        model.bank = bank
        model.load_state_dict(dict(state), strict=True, assign=True)
    return model


def describe(proof: Proof, claim: Claim | None, recipe: Recipe, label: str) -> Sequence[str]:
    """Lines for people: what was compared and how well it agrees."""
    call = f"{proof.seconds:.1f} s, {proof.steps} steps"
    if proof.members > 1:
        call += f" of {proof.members} networks"
    if claim is None:
        return [f"{label}: loss {proof.loss}, {call}; no trial to compare with"]
    if proof.exact:
        return [f"{label}: loss {proof.loss}, {call}; the trial's, bit for bit"]
    lines = [
        f"{label}: loss {proof.loss}, {call}; the trial had {claim.loss:.4f} ± "
        f"{claim.standard_error:.4f}: the same within their errors"
    ]
    if min(claim.steps, proof.steps) < recipe.steps:
        lines.append(
            f"the clock cut a schedule of {recipe.steps} steps (to {claim.steps} in the trial, "
            f"{proof.steps} here), so the two can't agree bit for bit"
        )
    else:
        lines.append("bit for bit holds only on the trial's machine, with its threads")
    return lines
