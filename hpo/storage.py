"""The one place that knows how to open a study's database well."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from filelock import FileLock
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url

from finetune.errors import UserError

from . import lifecycle
from .database import Database
from .lifecycle import Beat, NoTrial, Writes
from .patience import Patience, explain

PATIENCE_S = 3600.0
_SQLITE_BUSY_S = 10
_CONNECT_S = 10
# The worker's own statements and its pulse's; one more for the moment when both hold on.
_POOL_SIZE = 2
_LOCK_KEY = 0x72756E6573  # of PostgreSQL's advisory lock while tables are made


def shown(url: str) -> str:
    """The URL as it may be printed: without its password.

    Raises:
        UserError: it is no database URL.
    """
    parse_url(url)
    return make_url(url).render_as_string(hide_password=True)


def parse_url(url: str) -> sa.URL:
    """The parts of a database URL, PostgreSQL's with the driver that this project installs.

    Raises:
        UserError: it is no URL, or of a database that is not supported.
    """
    try:
        parsed = make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise UserError(
            "storage is no database URL; write one like sqlite:///runes.db "
            "or postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from error
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise UserError(
            f"storage is on {parsed.drivername}; write sqlite:///FILE.db or postgresql://..."
        )
    return parsed


class StudyStorage(_CachedStorage):
    """Optuna's storage interface over a `Database`, with what a worker needs beyond it.

    Args:
        worker: who claims trials and writes them; nobody else may.
    """

    def __init__(self, database: Database, worker: str) -> None:
        super().__init__(database)
        self.database = database
        self.worker = worker
        self._batch: tuple[int, Writes] | None = None
        self._claimed: dict[int, int] = {}  # study of each trial that this process ran

    # -- a worker's operations ---------------------------------------------------------------

    def create_study(
        self, name: str, attrs: Mapping[str, Any], queue: Sequence[Mapping[str, Any]]
    ) -> bool:
        """Create a study, its attributes and its first recipes as one; false if it exists."""
        try:
            return self.database.transact(lambda c: lifecycle.create_study(c, name, attrs, queue))
        except sa.exc.IntegrityError:  # another process was quicker
            return False

    def join_study(self, study_id: int) -> int:
        """This worker's ordinal in the study, from 0."""
        return self.database.transact(lambda c: lifecycle.join_study(c, study_id))

    def claim(self, study_id: int, budget: int | None) -> int | NoTrial:
        """The id of a trial for this worker to run; see `lifecycle.claim`."""
        claimed = self.database.transact(
            lambda c: lifecycle.claim(c, study_id, self.worker, budget)
        )
        if isinstance(claimed, int):
            self._claimed[claimed] = study_id
        return claimed

    @contextmanager
    def together(self, trial_id: int) -> Iterator[Writes]:
        """Writes to one trial inside this block become one transaction at its end.

        Raises:
            TrialTakenError: the trial is not this worker's any more.
        """
        if self._batch is not None:
            raise RuntimeError("a block of writes is open already")
        writes = Writes()
        self._batch = trial_id, writes
        try:
            yield writes
        finally:
            self._batch = None
        self._write(trial_id, writes)

    def beat(self, trial_id: int) -> bool:
        """A sign of life, not tried again; false if the trial is not this worker's any more."""
        with self.database.at_once() as c:
            return lifecycle.beat(c, trial_id, self.worker)

    def beats(self, study_id: int) -> list[Beat]:
        """The signs of life of all running trials, read once, not tried again."""
        with self.database.at_once() as c:
            return lifecycle.beats(c, study_id)

    def take_from_lost(self, lost: Beat, retries: int) -> TrialState | None:
        """Queue a lost worker's trial again, or fail it; see `lifecycle.take_from_lost`."""
        with self.database.at_once() as c:
            return lifecycle.take_from_lost(c, lost, retries)

    def hand_back(self, study_id: int, why: str, patience_s: float) -> list[int]:
        """Queue again what this worker holds; returns the numbers of those trials."""

        def work() -> list[int]:
            with self.database.engine.begin() as c:
                return lifecycle.hand_back(c, study_id, self.worker, why)

        return Patience(self.database.patience.what, patience_s).call(work)

    # -- Optuna's interface ------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if template_trial is not None:
            return super().create_new_trial(study_id, template_trial)
        # Optuna's own loop comes here after it looked for queued trials.
        claimed = self.claim(study_id, None)
        assert isinstance(claimed, int)
        return claimed

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if not state.is_finished():
            won = super().set_trial_state_values(trial_id, state, values)
            if won and state == TrialState.RUNNING:
                self.database.transact(lambda c: lifecycle.mark_claimed(c, trial_id, self.worker))
            return won
        self._write(trial_id, Writes(state=state, values=values))
        return True

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        with self._lock:
            study = self._studies.setdefault(self._study_of(trial_id), _StudyInfo())
            known = study.param_distribution.setdefault(param_name, distribution)
        check_distribution_compatibility(known, distribution)
        self._add(trial_id, Writes(params={param_name: (param_value_internal, distribution)}))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._add(trial_id, Writes(user_attrs={key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._add(trial_id, Writes(system_attrs={key: value}))

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        self._add(trial_id, Writes(reports={step: intermediate_value}))

    def _add(self, trial_id: int, writes: Writes) -> None:
        if self._batch is None or self._batch[0] != trial_id:
            self._write(trial_id, writes)
            return
        batch = self._batch[1]
        batch.params.update(writes.params)
        batch.user_attrs.update(writes.user_attrs)
        batch.system_attrs.update(writes.system_attrs)
        batch.reports.update(writes.reports)

    def _write(self, trial_id: int, writes: Writes) -> None:
        self.database.transact(lambda c: lifecycle.write(c, trial_id, self.worker, writes))

    def _study_of(self, trial_id: int) -> int:
        if trial_id in self._claimed:
            return self._claimed[trial_id]
        if trial_id not in self._trial_id_to_study_id_and_number:
            raise KeyError(f"no trial has the id {trial_id}")
        return self._trial_id_to_study_id_and_number[trial_id][0]


def open_storage(url: str, worker: str = "", patience_s: float = PATIENCE_S) -> StudyStorage:
    """SQLite (write-ahead log, one machine) or PostgreSQL, with its tables made if need be.

    Args:
        worker: who will claim trials; by default a name of this process.
        patience_s: for how long an operation is tried again while the database is away.

    Raises:
        UserError: the URL is malformed or the database can't be opened; no password is shown.
    """
    parsed = parse_url(url)
    patience = Patience(shown(url), patience_s)
    try:
        with _made_by_one(parsed), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            database = Database(
                parsed.render_as_string(hide_password=False),
                patience,
                engine_kwargs=_engine_options(parsed),
            )
    # A RuntimeError is Optuna's word for tables of another version.
    except (sa.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
        raise UserError(f"can't open {shown(url)}: {_hidden(explain(error), parsed)}") from error
    except RuntimeError as error:
        raise UserError(f"can't open {shown(url)}: {_version_advice(str(error))}") from error
    if parsed.get_backend_name() == "sqlite":
        sa.event.listen(database.engine, "connect", _relax_sync)
        database.engine.dispose()  # connections from before the listener
    return StudyStorage(database, worker or f"{socket.gethostname()}:{os.getpid()}")


def _engine_options(url: sa.URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _SQLITE_BUSY_S}}
    return {
        "pool_pre_ping": True,
        "pool_size": _POOL_SIZE,
        "max_overflow": 1,
        "connect_args": {
            "connect_timeout": _CONNECT_S,
            # Heartbeats are compared with now() of whichever connection asks.
            "options": "-c timezone=UTC",
            # A link that was cut without a word is noticed in half a minute.
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        },
    }


@contextmanager
def _made_by_one(url: sa.URL) -> Iterator[None]:
    """Connect, and while the tables are not there yet let one process at a time go on."""
    engine = sa.create_engine(url, **{**_engine_options(url), "pool_size": 1})
    try:
        with engine.connect() as connection:
            if url.get_backend_name() == "sqlite":
                _prepare_sqlite(connection, Patience(str(url), _SQLITE_BUSY_S))
            if _has_tables(connection):
                yield
                return
            if url.get_backend_name() == "sqlite":
                with FileLock(_lock_path(url)) if url.database else nullcontext():
                    yield
            else:
                # Held until the connection is closed, however this process ends.
                connection.execute(sa.select(sa.func.pg_advisory_lock(_LOCK_KEY)))
                yield
    finally:
        engine.dispose()


def _prepare_sqlite(connection: sa.Connection, patience: Patience) -> None:
    """Readers and a writer of one file shall not wait for each other; all must be able to write."""

    def prepare() -> None:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        version = connection.exec_driver_sql("PRAGMA user_version").scalar()
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        # On a file that can't be written, only a write says so.
        connection.exec_driver_sql(f"PRAGMA user_version={version}")
        connection.exec_driver_sql("ROLLBACK")

    patience.call(prepare)


def _has_tables(connection: sa.Connection) -> bool:
    # The last thing that Optuna writes when it makes its tables.
    if not sa.inspect(connection).has_table("alembic_version"):
        return False
    return connection.exec_driver_sql("SELECT 1 FROM alembic_version").first() is not None


def _lock_path(url: sa.URL) -> Path:
    # Not beside the database: a directory of studies shall hold studies.
    name = hashlib.sha256(str(Path(url.database or "").resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"hpo-{os.getuid()}-{name}.lock"


def _relax_sync(connection: Any, _record: object) -> None:
    # With a write-ahead log a power cut can lose the last transactions, but never corrupts.
    connection.execute("PRAGMA synchronous=NORMAL")


def _hidden(words: str, url: sa.URL) -> str:
    password = str(url.password or "")
    return words.replace(password, "***") if password else words


def _version_advice(message: str) -> str:
    if "storage upgrade" in message:
        remedy = "back it up, then run: optuna storage upgrade --storage URL"
    else:
        remedy = "install that release, or name another database"
    made_by = re.search(r"set up by optuna ([\w.]+)", message)
    return (
        f"its tables were made by Optuna {made_by[1] if made_by else 'of another release'}, "
        f"and this is {optuna.__version__}; {remedy}"
    )


def load_study(
    storage: StudyStorage,
    name: str,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """The study called ``name``.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
    except KeyError as error:
        known = ", ".join(sorted(s.study_name for s in storage.get_all_studies())) or "none yet"
        raise UserError(
            f"{storage.database.patience.what} has no study {name!r}; it has: {known}"
        ) from error
