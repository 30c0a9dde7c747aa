"""What a trial of `benchmarks.storage` does, and databases with many that have done it."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from tqdm import trange

from hpo.storage import tables as db
from hpo.storage.optuna_internals import stored_report, stored_value
from hpo.study.config import StudyConfig
from hpo.study.space import sample_values
from hpo.trial.ranking import OVER_LIMIT

STUDY = "storage"
REPORTS = 8  # of each trial: the study "runes" measures a recipe on eight instances
_PRUNED_SHARE = 0.4  # of the stored trials
_ROWS = 1000  # trials inserted by one round of statements

Batch = Callable[[], AbstractContextManager[object]]


class TrialWork:
    """An objective that writes all that a real one writes, and sleeps instead of computing.

    Args:
        think_s: mean seconds that a trial sleeps, in equal shares before each report.
        pause: called in the middle of each trial.
    """

    def __init__(
        self,
        config: StudyConfig,
        think_s: float,
        seed: int,
        pause: Callable[[], None] | None = None,
    ) -> None:
        self._config = config
        self._think_s = think_s
        self._rng = random.Random(seed)
        self._pause = pause
        self.slept_s: float | None = None  # of the trial at hand; None: none has begun

    def __call__(self, trial: optuna.Trial, batch: Batch) -> float:
        """The trial's loss, drawn at random; ``batch`` opens a batch of writes."""
        self.slept_s = 0.0
        with batch():
            method = self._config.load_method()
            recipe = sample_values(trial, self._config.space, self._config.fixed, method)
            trial.set_user_attr("recipe", json.dumps(recipe))
        level = self._rng.lognormvariate(math.log(0.1), 0.2)
        measured: list[dict[str, Any]] = []
        for number in range(1, REPORTS + 1):
            self._sleep()
            if self._pause and number == REPORTS // 2:
                self._pause()
            measured.append(self._measure(number, level))
            mean: float = sum(m["loss"] for m in measured) / number
            longest_s = max(m["seconds"] for m in measured)
            with batch():
                trial.report(mean, number)
                trial.set_user_attr("instances", measured)
                trial.set_user_attr("standard_error", 0.001 / math.sqrt(number))
                trial.set_user_attr("longest_call_s", longest_s)
            trial.should_prune()  # what it says is not heeded: every trial has the same work
        return mean

    def _measure(self, number: int, level: float) -> dict[str, Any]:
        return {
            "instance": f"character{number:02}/0/0",
            "loss": level * self._rng.uniform(0.9, 1.1),
            "standard_error": self._rng.uniform(0.0008, 0.0012),
            "seconds": round(self._rng.uniform(60.0, 110.0), 3),
            "steps": 640,
        }

    def _sleep(self) -> None:
        if not self._think_s:
            return
        start = time.monotonic()
        time.sleep(self._think_s / REPORTS * self._rng.uniform(0.5, 1.5))
        assert self.slept_s is not None
        # As it was, not as it was asked: a late wake-up is the machine's, not the service's.
        self.slept_s += time.monotonic() - start


def plain_objective(work: TrialWork, config: StudyConfig) -> Callable[[optuna.Trial], float]:
    """The work as an objective of `optuna.Study.optimize`."""

    def objective(trial: optuna.Trial) -> float:
        mean = work(trial, nullcontext)
        trial.set_constraint(OVER_LIMIT, trial.user_attrs["longest_call_s"] - config.feasible_s)
        return mean

    return objective


def make_trials(config: StudyConfig, count: int) -> list[FrozenTrial]:
    """Finished trials of random recipes, as `TrialWork` leaves them, 40 % of them pruned."""
    rng = random.Random(0)
    work = TrialWork(config, 0.0, seed=0)
    objective = plain_objective(work, config)
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0), pruner=optuna.pruners.NopPruner()
    )
    for _ in trange(count, desc="making trials", unit="trial", leave=False):
        trial = study.ask()
        mean = objective(trial)
        if rng.random() < _PRUNED_SHARE:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, mean)
    return study.get_trials(deepcopy=False)


def fill(url: str, trials: Sequence[FrozenTrial]) -> None:
    """Make Optuna's tables in an empty database, and in them a study with these trials."""
    storage = RDBStorage(url)
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], STUDY)
    with storage.engine.begin() as connection:
        for first in trange(0, len(trials), _ROWS, desc="storing", unit="k", leave=False):
            _insert(connection, study_id, trials[first : first + _ROWS])
    with storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("VACUUM ANALYZE")  # as the server does by itself in time
    storage.remove_session()
    storage.engine.dispose()


def _insert(c: sa.Connection, study_id: int, trials: Sequence[FrozenTrial]) -> None:
    now = db.utc_now()
    heads = [
        {
            "study_id": study_id,
            "number": trial.number,
            "state": trial.state,
            "datetime_start": now,
            "datetime_complete": now,
        }
        for trial in trials
    ]
    returning = sa.insert(db.TRIALS).returning(db.TRIALS.c.trial_id, sort_by_parameter_order=True)
    ids = c.execute(returning, heads).scalars().all()
    children: list[tuple[sa.Table, Callable[[FrozenTrial], Iterator[dict[str, Any]]]]] = [
        (db.PARAMS, _params),
        (db.USER_ATTRS, lambda t: _attrs(t.user_attrs)),
        (db.SYSTEM_ATTRS, lambda t: _attrs(t.system_attrs)),
        (db.INTERMEDIATE, _reports),
        (db.VALUES, _values),
    ]
    for table, rows_of in children:
        rows = [
            {"trial_id": trial_id, **row}
            for trial_id, trial in zip(ids, trials, strict=True)
            for row in rows_of(trial)
        ]
        c.execute(sa.insert(table), rows)


def _params(trial: FrozenTrial) -> Iterator[dict[str, Any]]:
    for name, distribution in trial.distributions.items():
        yield {
            "param_name": name,
            "param_value": distribution.to_internal_repr(trial.params[name]),
            "distribution_json": distribution_to_json(distribution),
        }


def _attrs(attrs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key, value in attrs.items():
        yield {"key": key, "value_json": json.dumps(value)}


def _reports(trial: FrozenTrial) -> Iterator[dict[str, Any]]:
    for step, report in trial.intermediate_values.items():
        value, kind = stored_report(report)
        yield {"step": step, "intermediate_value": value, "intermediate_value_type": kind}


def _values(trial: FrozenTrial) -> Iterator[dict[str, Any]]:
    assert trial.value is not None
    value, kind = stored_value(trial.value)
    yield {"objective": 0, "value": value, "value_type": kind}
