"""Copy studies to another database: one transaction each, compared before it commits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from optuna.trial import TrialState
from tqdm import tqdm

from ..artifacts.location import check_directory
from ..artifacts.store import Store, open_store
from ..errors import UserError
from ..formatting import counted
from ..process.logging import no_bars
from ..storage.dialects import dialect_of
from ..storage.errors import driver_message
from ..storage.open import open_storage, reading
from ..storage.rdb import StudyStorage
from ..storage.recovery import heartbeats
from ..storage.tables import STUDIES, TRIALS
from ..storage.url import IN_MEMORY, parse_url, shown, sqlite_file
from ..study.config import Recovery, StudyConfig, load_study_file
from .rows import StudyRows, add_calls, copy_file, difference, differing_call, insert_study

_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Chosen:
    """A study of the source."""

    name: str
    study_id: int
    grace_s: float  # a worker counts as lost after so many seconds without a heartbeat


def move_studies(
    source: str,
    target: str,
    studies: Sequence[str] | None,
    while_running: bool = False,
    artifacts: Sequence[str] | None = None,
) -> Iterator[str]:
    """Copy studies from the database ``source`` to ``target``; yields a line for each.

    A study that exists in the target must be equal.  Files are copied before rows.

    Args:
        studies: names in the source, or study files; None for all of the source.
        while_running: whether to copy studies that workers are running trials of.
        artifacts: source and target of trials' files, as `open_store` takes them; None copies no
            files.

    Raises:
        UserError: a database or a store can't be used; or a study does not exist, is running,
            changed while it was copied, or differs from the target's of that name.
    """
    stores = _stores(artifacts) if artifacts else None
    place = _place(target)
    if place == IN_MEMORY:
        raise UserError("--to is a database in memory; write sqlite:///FILE.db")
    if place == _place(source):
        raise UserError(f"--from and --to are both {shown(target)}; write two databases")
    with reading(source) as connection:
        chosen = _choose(connection, studies, shown(source))
        if not while_running:
            for study in chosen:  # check all of them before anything is created in the target
                _refuse_running(connection, study)
        storage = open_storage(target, retry_s=_PATIENCE_S)
        try:
            for study in chosen:
                rows = StudyRows(connection, study.study_id)
                files = _move_files(rows.files(), stores)
                is_new, calls = _move(rows, study, storage, source, while_running)
                if is_new:
                    done = f"{len(rows.ids)} trials copied to {shown(target)}, read back, identical"
                else:
                    done = f"{shown(target)} has it already, identical ({len(rows.ids)} trials)"
                yield f"{study.name}: {done}{calls}{files}"
        finally:
            storage.engine.dispose()


def _stores(places: Sequence[str]) -> tuple[Store, Store]:
    check_directory(places[0])
    source, target = (open_store(place) for place in places)
    if source is None or target is None:
        raise UserError("--artifacts names no place; write two directories, or s3://BUCKET")
    return source, target


def _move_files(ids: Sequence[str], stores: tuple[Store, Store] | None) -> str:
    """Copy files, if ``stores`` are given; returns a remark for the user."""
    if not ids:
        return ""
    if stores is None:
        return f"; {len(ids)} files stay where they are (--artifacts FROM TO copies them)"
    missing = 0
    for file_id in tqdm(ids, desc="files", unit="file", disable=no_bars(), leave=False):
        try:
            missing += not copy_file(file_id, *stores)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--artifacts: file {file_id} was not copied ({error}); run this again"
            ) from error
    lost = f", {missing} are not there" if missing else ""
    return f"; {len(ids) - missing} files copied{lost}"


def _place(url: str) -> object:
    """An object that is equal for URLs of the same database."""
    file = sqlite_file(url)
    if file is not None:
        return file if file == IN_MEMORY else file.resolve()
    parsed = parse_url(url)
    asked = parsed.query  # it may have host and port
    port = parsed.port or asked.get("port", 5432)
    return parsed.host or asked.get("host"), str(port), parsed.database


def _choose(c: sa.Connection, studies: Sequence[str] | None, where: str) -> list[Chosen]:
    query = sa.select(STUDIES.c.study_name, STUDIES.c.study_id).order_by(STUDIES.c.study_id)
    there: dict[str, int] = {name: study_id for name, study_id in c.execute(query)}
    if not there:
        raise UserError(f"{where} has no studies; write another database's URL")
    chosen = {}
    for study in there if studies is None else studies:
        config = _config(study, study in there)
        name = config.name if config and study not in there else study
        if name not in there:
            raise UserError(f"{where} has no study {name!r}; it has: {', '.join(sorted(there))}")
        recovery = config.recovery if config else Recovery()
        chosen[name] = Chosen(name, there[name], recovery.grace_s)
    return list(chosen.values())


def _config(study: str, is_known: bool) -> StudyConfig | None:
    """The study's file; None if there is none and the study was not named by its path."""
    try:
        return load_study_file(study)
    except UserError:
        if not is_known and (study.endswith(".toml") or "/" in study):
            raise
        return None


def _refuse_running(c: sa.Connection, study: Chosen) -> None:
    """Raise UserError if a worker may be running a trial of the study.

    The trial of a worker without a recent heartbeat is copied as it is, with that heartbeat. The
    first worker that joins the copy finds the trial lost and queues it again, as usual.
    """
    advice = "stop its workers (SIGTERM; they hand their trials back), or add --while-running"
    heard = heartbeats(c, study.study_id)
    for beat in heard:
        if beat.age_s <= study.grace_s:
            raise UserError(
                f"study {study.name} is being worked on: {beat.worker} runs trial {beat.number}, "
                f"last sign of life {max(0.0, beat.age_s):.0f} s ago; {advice}"
            )
    running = sa.select(sa.func.count()).where(
        TRIALS.c.study_id == study.study_id, TRIALS.c.state == TrialState.RUNNING
    )
    if unheard := c.execute(running).scalar_one() - len(heard):
        raise UserError(
            f"study {study.name} has running trials without signs of life, by other programs: "
            f"{unheard}; end these programs, then add --while-running"
        )


def _move(
    rows: StudyRows, study: Chosen, storage: StudyStorage, source: str, while_running: bool
) -> tuple[bool, str]:
    """Copy a study in one transaction.

    Returns:
        Whether the study is new in the target; otherwise the target had an equal one, perhaps with
        fewer calls.  And a remark for the user on the study's stored calls.
    """
    target = storage.name
    n_calls = rows.count_calls()
    with_calls = n_calls > 0 and storage.keeps_calls()  # it logs the reason if it can't
    left = f"; {counted(n_calls, 'call')} left behind" if n_calls and not with_calls else ""

    def work(c: sa.Connection) -> tuple[bool, str]:
        dialect_of(c).never_idle(c)
        found = c.execute(
            sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == study.name)
        ).scalar()
        if found is not None:
            copy = StudyRows(c, found)
            words = _compare(rows, copy)
            added = add_calls(rows, copy) if with_calls and not words else 0
            if with_calls:
                words = words or differing_call(rows, copy)
            if words:
                raise UserError(
                    f"{target} has another study {study.name} ({words}); name another database"
                )
            return False, f"; {counted(added, 'call')} added" if added else left
        with _progress(rows, "copying") as bar:
            copy = insert_study(study.name, rows, c, bar.update)
        added = add_calls(rows, copy) if with_calls else 0
        if while_running:
            words = _compare(rows, copy)
            words = words or (differing_call(rows, copy) if with_calls else None)
        else:
            with reading(source) as now:  # it may have changed meanwhile
                fresh = StudyRows(now, study.study_id)
                words = _compare(fresh, copy)
                words = words or (differing_call(fresh, copy) if with_calls else None)
        if words:
            raise UserError(
                f"study {study.name} changed while it was copied ({words}), and nothing was kept; "
                "end whatever writes to it, and run this again"
            )
        return True, f"; {counted(added, 'call')}, too" if added else left

    try:
        try:
            return storage.transact(work)
        except sa.exc.IntegrityError:  # another process created it meanwhile: compare
            return storage.transact(work)
    except sa.exc.DataError as error:
        raise UserError(
            f"{target} can't hold study {study.name} as it is, and nothing was kept: "
            f"{driver_message(error)}"
        ) from error


def _compare(one: StudyRows, other: StudyRows) -> str | None:
    with _progress(one, "comparing") as bar:
        return difference(one, other, bar.update)


def _progress(rows: StudyRows, what: str) -> tqdm:
    # No bars unless this is a terminal.
    return tqdm(total=len(rows.ids), desc=what, unit="trial", disable=no_bars(), leave=False)
