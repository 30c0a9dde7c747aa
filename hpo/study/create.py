"""Create a study in a database from its file, or join it if it exists."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from ..errors import UserError
from ..formatting import counted
from ..process.logging import info
from ..pruners.registry import make_pruner
from ..samplers.registry import make_sampler
from ..storage.open import load_study, open_storage
from ..storage.rdb import StudyStorage
from ..storage.url import shown
from ..trial.ranking import best_trials
from .config import StartFrom, StudyConfig
from .manifest import MADE_BY_KEY, MANIFEST_KEY, check_manifest, made_by, read_manifest
from .takeover import Takeover, take_over


def join(
    config: StudyConfig, url: str, manifest: dict[str, str], seed: int | None = None
) -> tuple[optuna.Study, StudyStorage]:
    """Join the study, which is created if need be; returns its storage in this worker's name, too.

    Args:
        seed: seed of the sampler; None: derived from the study's seed and the worker's ordinal.

    Raises:
        UserError: the database can't be used, or the study measures something else.
    """
    storage, study = create(config, url, manifest)
    ordinal = storage.join(study._study_id)
    if (new := storage.queue_starts(study._study_id, config.start)) > 0:
        info(f"{counted(new, 'starting recipe')} of the study file queued")
    storage.keeps_calls()  # creates their table, or logs why not, before any trial begins
    storage.worker = f"{socket.gethostname()}:{os.getpid()}#{ordinal}"
    if seed is None:
        entropy = np.random.SeedSequence([config.sampler.seed, ordinal])
        seed = int(entropy.generate_state(1)[0])
    study.sampler = make_sampler(config.sampler, seed)
    study.pruner = make_pruner(config.pruner)
    return study, storage


def create(
    config: StudyConfig, url: str, manifest: dict[str, str]
) -> tuple[StudyStorage, optuna.Study]:
    """Open the database and create the study in it, unless it exists.

    Raises:
        UserError: the database can't be used, or the study measures something else.
    """
    storage = open_storage(url, retry_s=config.recovery.patience_s)
    if not _exists(storage, config.name):
        attrs: dict[str, Any] = {MANIFEST_KEY: manifest, MADE_BY_KEY: made_by()}
        if config.about:
            attrs["about"] = config.about
        takeover = _taken_over(config, storage, url, manifest)
        queue = first_recipes(config, storage, url)
        taken = takeover.taken if takeover else None
        if storage.create_study(config.name, attrs, queue, taken) and takeover:
            info(str(takeover))
    study = load_study(storage, config.name)
    check_manifest(study, manifest)
    storage.identify(study._study_id)
    return storage, study


def _exists(storage: StudyStorage, name: str) -> bool:
    try:
        storage.get_study_id_from_name(name)
    except KeyError:
        return False
    return True


def first_recipes(config: StudyConfig, storage: StudyStorage, url: str) -> list[dict[str, Any]]:
    """Parameters of the trials to run first: the file's own, then another study's best.

    Another study's values that do not fit into this study's space are left to the sampler.

    Raises:
        UserError: the other study does not exist, or has no complete trial.
    """
    recipes = [dict(parameters) for parameters in config.start]
    if config.start_from is None or config.start_from.trials == "all":
        return recipes
    wanted = config.start_from
    _, other = _other_study(wanted, storage, url)
    best = best_trials(other.get_trials(deepcopy=False), wanted.best)
    if not best:
        raise UserError(
            f"start_from: study {wanted.study} in {shown(wanted.storage or url)} has no complete, "
            "feasible trial"
        )
    for trial in best:
        fitting = {
            name: trial.params[name]
            for name, parameter in config.space.items()
            if name in trial.params and parameter.allows(trial.params[name])
        }
        if fitting and fitting not in recipes:
            recipes.append(fitting)
    return recipes


def _taken_over(
    config: StudyConfig, storage: StudyStorage, url: str, manifest: Mapping[str, str]
) -> Takeover | None:
    """The trials to take over by ``start_from`` with ``trials = "all"``; None without that key.

    Raises:
        UserError: the other study does not exist, or measured something else.
    """
    wanted = config.start_from
    if wanted is None or wanted.trials != "all":
        return None
    there, other = _other_study(wanted, storage, url)
    its_manifest, trials = read_manifest(other.user_attrs), other.get_trials(deepcopy=False)
    # Where calls can't be stored, only trials are taken over.
    calls = there.calls_of_study(other._study_id) if storage.keeps_calls() else []
    return take_over(config, manifest, wanted.study, its_manifest, trials, calls)


def _other_study(
    wanted: StartFrom, storage: StudyStorage, url: str
) -> tuple[StudyStorage, optuna.Study]:
    """The study that ``start_from`` names, with its storage."""
    if wanted.storage is not None and wanted.storage != url:
        storage = open_storage(wanted.storage)
    return storage, load_study(storage, wanted.study)
