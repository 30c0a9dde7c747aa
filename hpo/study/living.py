"""Open an existing study, for commands that control it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import optuna

from ..arguments import StudyOptions
from ..storage.open import load_study, open_existing
from ..storage.rdb import StudyStorage
from ..storage.url import study_argument
from .config import StudyConfig, load_study_file


@dataclass(frozen=True)
class Living:
    """An existing study with its file and its database."""

    config: StudyConfig
    study: optuna.Study
    storage: StudyStorage

    @property
    def id(self) -> int:
        return self.study._study_id


@contextmanager
def opened(options: StudyOptions) -> Iterator[Living]:
    """Open the study that a command names, and close it afterwards.

    Raises:
        UserError: the file, the database or the study does not exist.
    """
    config = load_study_file(options.study)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    named = study_argument(options.study, options.storage)
    storage = open_existing(config.storage_url(options.storage), named, to_write=True)
    try:
        yield Living(config, load_study(storage, config.name), storage)
    finally:
        storage.engine.dispose()
