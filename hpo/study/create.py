"""From a study file to a study in a database: created once, joined by every worker."""

from __future__ import annotations

import os
import socket
from typing import Any

import numpy as np
import optuna

from ..errors import UserError
from ..pruners.registry import make_pruner
from ..samplers.registry import make_sampler
from ..storage.open import load_study, open_storage
from ..storage.rdb import StudyStorage
from ..storage.url import shown
from ..trial.ranking import best_trials
from .config import StudyConfig
from .manifest import MADE_BY_KEY, MANIFEST_KEY, check_manifest, made_by


def join(
    config: StudyConfig, url: str, manifest: dict[str, str], seed: int | None = None
) -> tuple[optuna.Study, StudyStorage]:
    """The study, created if need be, and its storage in the name of this worker.

    Args:
        seed: of the sampler; None: derived from the study's and this worker's place in it.

    Raises:
        UserError: the database can't be used, or the study measures something else.
    """
    storage, study = create(config, url, manifest)
    ordinal = storage.join(study._study_id)
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
    """Open the database and create the study in it, unless it is there.

    Raises:
        UserError: the database can't be used, or the study measures something else.
    """
    storage = open_storage(url, retry_s=config.recovery.patience_s)
    if not _exists(storage, config.name):
        attrs: dict[str, Any] = {MANIFEST_KEY: manifest, MADE_BY_KEY: made_by()}
        if config.about:
            attrs["about"] = config.about
        storage.create_study(config.name, attrs, first_recipes(config, storage, url))
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

    Of those, values that this study's space has no place for are left to the sampler.

    Raises:
        UserError: the other study is not there, or has no trial to offer.
    """
    recipes = [dict(parameters) for parameters in config.start]
    if config.start_from is None:
        return recipes
    wanted = config.start_from
    if wanted.storage is not None and wanted.storage != url:
        storage, url = open_storage(wanted.storage), wanted.storage
    other = load_study(storage, wanted.study)
    best = best_trials(other.get_trials(deepcopy=False), wanted.best)
    if not best:
        raise UserError(
            f"start_from: study {wanted.study} in {shown(url)} has no complete, feasible trial"
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
