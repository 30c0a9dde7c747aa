"""What a study measures: stored as it is created, checked by every worker that joins.

Losses of two data sets, two networks or two versions of the code must never meet in one study.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import platform
import tokenize
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import optuna

from finetune.submission.imports import needed_modules

from ..errors import UserError
from .config import StudyConfig

if TYPE_CHECKING:  # torch takes seconds to import, and who only joins a study needs none of it
    from finetune.data.runes import RuneSource

    from ..problem.instances import Instance

MANIFEST_KEY = "manifest"
MADE_BY_KEY = "made_by"
# Where what has a say in a loss begins: in the method and the problem.
_MEASURING = ("adapt", "data.runes", "model.checkpoints", "scoring.cost", "scoring.estimators")
_WITH_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_LIBRARIES = ("torch", "optuna", "numpy", "scipy", "sqlalchemy")
# Entries that a manifest has only where the study file sets them, so that studies of before stand.
_OPTIONAL = ("cost",)
_REMEDY = {
    "code": "run the version that made it",
    "data": "name that data by --data, --alphabet, --drawings and --train",
    "networks": "name those networks in instances.pretrained",
    "torch": "install that version",
}


def make_manifest(
    config: StudyConfig, source: RuneSource, instances: Sequence[Instance]
) -> dict[str, str]:
    """Everything that two workers must agree on for their losses to be comparable."""
    from finetune.model.checkpoints import network_digest

    networks = {i.network: network_digest(i.pretrained)[:12] for i in instances}
    asked = config.model_dump(mode="json", include={"space", "fixed", "estimator"})
    manifest = {
        "code": _code_digest(),
        "data": f"{source.name} {source.mark(config.instances.train)}",
        "networks": " ".join(f"{name}:{digest}" for name, digest in networks.items()),
        "instances": " ".join(
            [config.instances.resize, *(f"{i.label}@{i.network}" for i in instances)]
        ),
        "estimator": json.dumps(asked["estimator"]),
        "limit": f"{config.limit_s:g} s less {config.margin_s:g} s",
        "space": _digest(json.dumps([asked["space"], asked["fixed"]])),
        "torch": ".".join(version("torch").split(".")[:2]),
    }
    if config.limits.cost is not None:
        manifest["cost"] = f"{config.limits.cost:g} of the plain network's"
    return manifest


def check_manifest(study: optuna.Study, mine: Mapping[str, str]) -> None:
    """Compare this worker's manifest with the one that the study was created with.

    Raises:
        UserError: this worker would measure something else; says which entry differs.
    """
    theirs = study.user_attrs.get(MANIFEST_KEY)
    if theirs is None:
        raise UserError(
            f"study {study.study_name} has no manifest, so what it measures is not known; "
            "give your study another name"
        )
    unset = {entry: None for entry in _OPTIONAL if entry in theirs}
    for entry, value in {**unset, **mine}.items():
        if theirs.get(entry) != value:
            remedy = _REMEDY.get(entry, "undo the change in the study file")
            raise UserError(
                f"study {study.study_name} was made with other {entry} "
                f"({theirs.get(entry)} there, {value} here); {remedy}, "
                "or give your study another name, with start_from = "
                f'{{ study = "{study.study_name}" }} for its best recipes'
            )


def made_by() -> dict[str, str]:
    """Versions of what created a study: for the record, not compared."""
    versions = {name: version(name) for name in _LIBRARIES}
    return {"runes": version("runes"), "python": platform.python_version(), **versions}


def _code_digest() -> str:
    return _digest("".join(map(_without_words, needed_modules(*_MEASURING).values())))


def _without_words(source: str) -> str:
    """The source without comments, docstrings and blank lines, which have no say in a loss."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _WITH_DOCSTRINGS) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            first, end = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
            lines[first:end] = [""] * (end - first)
    return "".join(f"{line.rstrip()}\n" for line in lines if line.strip())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
