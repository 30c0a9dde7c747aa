"""The one place that knows how to open a study's database well."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy.engine import make_url

from finetune.errors import UserError

HEARTBEAT_S = 30
GRACE_S = 120
_SQLITE_BUSY_S = 30
_POOL_SIZE = 2


def shown(url: str) -> str:
    """The URL as it may be printed: without its password.

    Raises:
        UserError: it is no database URL.
    """
    return _parse(url).render_as_string(hide_password=True)


def _parse(url: str) -> sqlalchemy.URL:
    try:
        return make_url(url)
    except sqlalchemy.exc.ArgumentError as error:
        raise UserError("storage is no database URL; write one like sqlite:///runes.db") from error


def open_storage(url: str) -> BaseStorage:
    """SQLite (WAL, one machine) or PostgreSQL behind Optuna's cache.

    Raises:
        UserError: the URL is malformed or the database can't be opened; no password is shown.
    """
    engine_kwargs: dict[str, Any]
    if _parse(url).get_backend_name() == "sqlite":
        engine_kwargs = {"connect_args": {"timeout": _SQLITE_BUSY_S}}
        _make_wal(url)
    else:
        engine_kwargs = {"pool_pre_ping": True, "pool_size": _POOL_SIZE}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
            storage = RDBStorage(
                url,
                engine_kwargs=engine_kwargs,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
            )
    # A RuntimeError is Optuna's word for tables of another version.
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError) as error:
        raise UserError(f"can't open {shown(url)}: {_one_line(error)}") from error
    if storage.engine.dialect.name == "sqlite":
        sqlalchemy.event.listen(storage.engine, "connect", _relax_sync)
        storage.engine.dispose()  # connections from before the listener
    return get_storage(storage)


def _make_wal(url: str) -> None:
    """Switch the database to a write-ahead log: readers and a writer no longer wait."""
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": _SQLITE_BUSY_S})
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise UserError(f"can't open {shown(url)}: {_one_line(error)}") from error
    finally:
        engine.dispose()


def _relax_sync(connection: object, _record: object) -> None:
    # With WAL a power cut can lose the last transactions, but never corrupts.
    connection.execute("PRAGMA synchronous=NORMAL")  # type: ignore[attr-defined]


def _one_line(error: Exception) -> str:
    cause = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig else error
    return " ".join(str(cause).split())[:200]


def open_study(
    storage: BaseStorage,
    name: str,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
) -> tuple[optuna.Study, bool]:
    """The study called ``name``, and whether this call created it."""
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, sampler=sampler, pruner=pruner, direction="minimize"
        )
        return study, True
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
        return study, False
