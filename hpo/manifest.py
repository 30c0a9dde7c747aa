"""What a study measures: recorded when it is created, checked by every worker that joins.

Losses of two data sets, two networks or two versions of the code must never meet in one study.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from importlib import resources

import optuna
import torch

from finetune.data import RuneSource
from finetune.errors import UserError
from finetune.networks import network_digest

from .config import StudyConfig
from .objective import Instance

MANIFEST_KEY = "manifest"
_CREATOR_WAIT_S = 10.0  # between a study's creation and its manifest, by another process
# The modules that have a say in a loss.
_MEASURING = (
    *("adapt", "augment", "data", "drawn", "flow", "futhorc", "layers", "precision"),
    *("rebuild", "recipe", "unet", "validation"),
)
_REMEDY = {
    "code": "run the version that made it",
    "data": "name that data by --data",
    "networks": "name those networks in instances.pretrained",
    "torch": "install that version",
}


def make_manifest(
    config: StudyConfig, source: RuneSource, instances: Sequence[Instance]
) -> dict[str, str]:
    """Everything that two workers must agree on for their losses to be comparable."""
    networks = {i.network: network_digest(i.pretrained)[:12] for i in instances}
    asked = config.model_dump(mode="json", include={"space", "fixed", "estimator"})
    return {
        "code": _code_digest(),
        "data": f"{source.name} {source.digest[:12]}",
        "networks": " ".join(f"{name}:{digest}" for name, digest in networks.items()),
        "instances": " ".join([config.instances.resize, *(i.label for i in instances)]),
        "estimator": json.dumps(asked["estimator"]),
        "space": _digest(json.dumps([asked["space"], asked["fixed"]])),
        "torch": ".".join(torch.__version__.split(".")[:2]),
    }


def record_or_check(study: optuna.Study, mine: dict[str, str], created: bool) -> None:
    """Record the manifest of a study that this process created; compare it with any other's.

    Raises:
        UserError: this worker would measure something else; says which entry differs.
    """
    if created:
        study.set_user_attr(MANIFEST_KEY, mine)
        return
    deadline = time.monotonic() + _CREATOR_WAIT_S
    while (theirs := study.user_attrs.get(MANIFEST_KEY)) is None:
        if time.monotonic() > deadline:
            raise UserError(
                f"study {study.study_name} has no manifest, so what it measures is not known; "
                "give your study another name"
            )
        time.sleep(0.2)
    for entry, value in mine.items():
        if theirs.get(entry) != value:
            remedy = _REMEDY.get(entry, "undo the change in the study file")
            raise UserError(
                f"study {study.study_name} was made with other {entry} "
                f"({theirs.get(entry)} there, {value} here); {remedy}, "
                "or give your study another name"
            )


def _code_digest() -> str:
    directory = resources.files("finetune")
    return _digest("".join((directory / f"{name}.py").read_text("utf-8") for name in _MEASURING))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
