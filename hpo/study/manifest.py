"""The manifest: what a study measures. It is stored at creation and checked by every worker.

Losses of different data, networks or versions of the code must never mix in one study.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any

import optuna

from ..errors import UserError
from ..problem.base import Problem, short_digest
from .config import StudyConfig

MANIFEST_KEY = "manifest"
MADE_BY_KEY = "made_by"
_LIBRARIES = ("torch", "optuna", "numpy", "scipy", "sqlalchemy")
# Entries that exist only if the study file sets them, so that older studies stay valid.
_OPTIONAL = ("cost", "clock")
_REMEDY = {
    "code": "run the version that made it",
    "data": "name that data by --data, --alphabet, --drawings and --train",
    "networks": "name those networks in instances.pretrained",
    "torch": "install that version",
    "clock": "write that machine and speed in [clock]",
}


def make_manifest(config: StudyConfig, problem: Problem) -> dict[str, str]:
    """Everything that two workers must agree on for their losses to be comparable.

    Raises:
        UserError: the problem's data is missing or can't be used.
    """
    space = config.model_dump(mode="json", include={"space", "fixed"})
    manifest = {
        **config.load_method().fingerprint(),
        **problem.fingerprint(),
        "limit": f"{config.limit_s:g} s less {config.margin_s:g} s",
        "space": short_digest(json.dumps([space["space"], space["fixed"]])),
    }
    clock = config.load_clock()
    if clock is not None:
        manifest["clock"] = clock.mark
    if config.limits.cost is not None:
        manifest["cost"] = f"{config.limits.cost:g} of the plain network's"
    return manifest


def read_manifest(attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read the manifest from a study's user attributes; empty if it has none."""
    stored = attrs.get(MANIFEST_KEY)
    return stored if isinstance(stored, Mapping) else {}


def check_manifest(study: optuna.Study, mine: Mapping[str, str]) -> None:
    """Compare this worker's manifest with the one that the study was created with.

    Raises:
        UserError: this worker would measure something else; the message says which entry differs.
    """
    theirs = read_manifest(study.user_attrs)
    if not theirs:
        raise UserError(
            f"study {study.study_name} has no manifest, so what it measures is not known; "
            "give your study another name"
        )
    entry = first_difference(theirs, mine)
    if entry is not None:
        remedy = _REMEDY.get(entry, "undo the change in the study file")
        raise UserError(
            f"study {study.study_name} was made with other {entry} "
            f"({theirs.get(entry)} there, {mine.get(entry)} here); {remedy}, "
            "or give your study another name, with start_from = "
            f'{{ study = "{study.study_name}" }} for its best recipes'
        )


def first_difference(
    theirs: Mapping[str, Any], mine: Mapping[str, str], but: Collection[str] = ()
) -> str | None:
    """The first entry in which a study's manifest differs from this process's; None if equal.

    Args:
        but: entries that may differ.
    """
    entries = [*(entry for entry in _OPTIONAL if entry in theirs), *mine]
    return next((e for e in entries if e not in but and theirs.get(e) != mine.get(e)), None)


def made_by() -> dict[str, str]:
    """Versions of the software that created a study; they are stored, but not compared."""
    versions = {name: version(name) for name in _LIBRARIES}
    return {"runes": version("runes"), "python": platform.python_version(), **versions}
