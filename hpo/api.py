"""A study in Python: ``from hpo import open_study``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .arguments import PREFIX
from .errors import UserError
from .study.config import StudyConfig, load_study_file

# Optuna and torch take seconds to import.
if TYPE_CHECKING:
    import optuna
    import pandas

    from .analysis.status import Status
    from .storage.rdb import StudyStorage
    from .study.confirmation import Confirmation

__all__ = ["OpenStudy", "open_study"]


def open_study(study: str | Path, storage: str | None = None) -> OpenStudy:
    """A study to look at and to work on, in a notebook or a program.

    Args:
        study: a name in studies/, or the path of a study file.
        storage: URL of the database, or a published ``FILE.db.gz`` to look at; None: that of
            ``RUNES_STORAGE``, else the study file's.

    Raises:
        UserError: the study file is not there, or not usable. The message is one line.

    Example:
        >>> study = open_study("quickstart")
        >>> study.run(trials=3)
        >>> study.status().best[0].loss
        0.1374
        >>> optuna.visualization.matplotlib.plot_optimization_history(study.optuna)
    """
    named = storage or os.environ.get(f"{PREFIX}STORAGE") or None
    return OpenStudy(str(study), load_study_file(str(study)), named)


class OpenStudy:
    """What `open_study` returns.  ``with`` closes its database at the end.

    Attributes:
        config: the study file.
    """

    def __init__(self, study: str, config: StudyConfig, storage: str | None) -> None:
        self.config = config
        self._study, self._option = study, storage
        self._closing = ExitStack()
        self._storage: StudyStorage | None = None
        self._optuna: optuna.Study | None = None

    @property
    def optuna(self) -> optuna.Study:
        """Optuna's own study, which `optuna.visualization` and other tools take.

        Raises:
            UserError: the database or the study is not there; `run` makes both.
        """
        if self._optuna is None:
            from .storage.compressed import is_published
            from .storage.open import load_study, looked_at, open_existing
            from .storage.url import study_argument

            url = self.config.storage_url(self._option)
            named = study_argument(self._study, self._option)
            if is_published(url):
                storage = self._closing.enter_context(looked_at(url, named))
            else:
                storage = open_existing(url, named, to_write=True)
                self._closing.callback(storage.engine.dispose)
            self._optuna = load_study(storage, self.config.name)
            self._storage = storage
        return self._optuna

    def status(self, best: int = 5) -> Status:
        """How the study stands, as `hpo.status` says it.

        Args:
            best: at most so many of the best trials.
        """
        from .analysis.status import status_of

        study, storage = self.optuna, self._opened
        return status_of(
            self.config,
            self.config.storage_url(self._option),
            study.get_trials(deepcopy=False),
            storage.retry.call(lambda: storage.heartbeats(study._study_id)),
            datetime.now(UTC),
            best,
            study.user_attrs,
            storage.count_calls(study._study_id),
        )

    def trials(self) -> pandas.DataFrame:
        """A row for each trial: number, state, outcome, loss, its standard error, seconds of the
        longest call, seconds of compute, then the parameters.

        Raises:
            UserError: pandas is not installed.
        """
        from .trial.run import runs_of

        try:
            frame = importlib.import_module("pandas").DataFrame
        except ImportError as error:
            raise UserError("a data frame needs pandas; pip install pandas") from error
        rows = [
            {
                "number": run.number,
                "state": run.state.name,
                "outcome": run.outcome,
                "loss": run.loss,
                "standard_error": run.standard_error,
                "longest_call_s": run.longest_s,
                "compute_s": run.compute_s,
                **run.params,
            }
            for run in runs_of(self.optuna.get_trials(deepcopy=False))
        ]
        return frame(rows)

    def run(self, trials: int | None = None, seconds: float | None = None) -> None:
        """Run trials in this process, as `hpo.worker` does; the study is made if it is not there.

        Args:
            trials: stop when the study has so many finished; None: the study file's budget.
            seconds: start no trial after this many; None: the study file's budget.

        Raises:
            UserError: the study file, the data or the database are not usable.
            RuntimeError: too many trials in a row failed, as the log says.
        """
        from .worker.options import WorkerOptions
        from .worker.run import run_worker

        options = WorkerOptions(
            study=self._study, storage=self._option, trials=trials, seconds=seconds
        )
        if run_worker(options):
            raise RuntimeError("the worker failed; its log says why")

    def enqueue(self, parameters: Mapping[str, Any]) -> int:
        """Queue a trial, which the next free worker runs; returns its number.

        Args:
            parameters: of the study's space; those that are left out are sampled.

        Raises:
            UserError: the space can't sample them; says which and what it can.
        """
        from .study.control import enqueue
        from .study.space import check_queued

        study = self.optuna
        try:
            check_queued(parameters, self.config.space)
        except ValueError as error:
            raise UserError(str(error)) from error
        number = enqueue(self._opened, study._study_id, parameters).trial
        assert number is not None
        return number

    def confirm(self, top: int = 8, rounds: int = 3) -> Confirmation:
        """Measure the best trials again on instances that no trial saw, as `hpo.confirm` does.

        Args:
            top: so many of the best trials take part, beside the default recipe.
            rounds: of halving.

        Raises:
            UserError: the study, the data or what ``[confirm]`` asks for is not usable.
            hpo.confirm.run.NoneFeasibleError: no candidate kept the limits.
        """
        from .confirm.run import confirm
        from .process.devices import choose_device, n_cores

        choose_device(None)
        self.config.load_method().prepare(None, n_cores())
        study = self.optuna
        self._opened.identify(study._study_id)
        return confirm(self.config, study, data=None, top=top, recipes=(), rounds=rounds)

    def close(self) -> None:
        """Close the database."""
        self._closing.close()
        self._optuna = self._storage = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _opened(self) -> StudyStorage:
        assert self._storage is not None  # `optuna` was read
        return self._storage
