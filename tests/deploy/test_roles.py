"""Users of deploy/roles.sql: each can do its work, and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from benchmarks.postgres import Postgres
from hpo.init import InitOptions, init

if TYPE_CHECKING:
    from tests.conftest import Nursery

REPO = Path(__file__).parents[2]
CHEAP = str(REPO / "tests" / "hpo" / "cheap_worker.py")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(cheap_nursery: Nursery) -> Run:
    """Runs Python to its end."""

    def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return cheap_nursery.run(command, REPO, os.environ | environment)

    return run


@pytest.fixture
def study(url: Callable[..., str], drawn_once: None) -> Callable[..., str]:
    """URLs of a database in which the owner has made the study quickstart."""
    init(InitOptions(study="quickstart", storage=url("runes_owner"), wait=0.0))
    return url


def test_a_worker_runs_trials_and_hands_back_and_can_do_no_harm_to_tables(
    study: Callable[..., str], run: Run
) -> None:
    worker = study("runes_worker")
    # Queues trials, claims, beats, reports, ends: everything that a worker writes.
    done = run(CHEAP, worker, "4", "start=0.1,0.2", "heartbeat_s=0.05", "grace_s=5")
    assert done.returncode == 0, done.stderr
    assert "done: 4 trials are finished" in done.stderr
    with psycopg.connect(worker, autocommit=True) as connection:
        for statement in (
            "DROP TABLE trials",
            "TRUNCATE trials CASCADE",
            "ALTER TABLE trials ADD COLUMN x int",
            "CREATE TABLE mine (x int)",
            "CREATE SCHEMA mine",
            "CREATE TEMPORARY TABLE mine (x int)",
        ):
            with pytest.raises(InsufficientPrivilege):
                connection.execute(statement)


def test_a_reader_sees_everything_and_changes_nothing(study: Callable[..., str], run: Run) -> None:
    assert run(CHEAP, study("runes_worker"), "3").returncode == 0
    reader = study("runes_reader")
    status = run("-m", "hpo.status", "--study", "quickstart", "--storage", reader)
    assert status.returncode == 0, status.stderr
    assert "quickstart" in status.stdout
    with psycopg.connect(reader, autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM trials").fetchone() == (4,)
        for statement in (
            "UPDATE trials SET number = 0",
            "DELETE FROM trials",
            "INSERT INTO studies (study_name) VALUES ('mine')",
            "DROP TABLE trials",
            "CREATE TABLE mine (x int)",
        ):
            with pytest.raises(InsufficientPrivilege):
                connection.execute(statement)
    # As a worker it is told so in one line.
    done = run(CHEAP, reader, "9")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "permission denied for table studies; grant the user its rights" in line


def test_a_worker_before_the_owner_is_told_what_to_do(url: Callable[..., str], run: Run) -> None:
    done = run(CHEAP, url("runes_worker"), "1")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "permission denied for schema public; grant the user its rights" in line


def test_passwords_are_changed_by_running_it_again(
    study: Callable[..., str],
    database: str,
    roles: dict[str, str],
    make_roles: Callable[[str, Mapping[str, str]], None],
) -> None:
    old = study("runes_reader")
    try:
        make_roles(database, roles | {"runes_reader": "another-secret"})
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(old)
        with psycopg.connect(old.replace(roles["runes_reader"], "another-secret")) as connection:
            assert connection.execute("SELECT count(*) FROM trials").fetchone() == (1,)
    finally:
        make_roles(database, roles)


def test_nobody_else_gets_in_and_moments_are_of_utc(
    postgres: Postgres, study: Callable[..., str], database: str
) -> None:
    if not postgres.sql("SELECT 1 FROM pg_roles WHERE rolname = 'stranger'"):
        postgres.sql("CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
    stranger = f"postgresql://stranger:stranger@127.0.0.1:{postgres.port}/{database}"
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(stranger)
    with psycopg.connect(study("runes_worker")) as connection:
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)


def test_a_password_may_stand_in_a_file_of_its_own(
    study: Callable[..., str], roles: dict[str, str], tmp_path: Path, run: Run
) -> None:
    url = study("runes_reader").replace(f":{roles['runes_reader']}@", "@")
    place = url.split("@")[1].replace("/", ":")
    (tmp_path / "pgpass").write_text(f"{place}:runes_reader:{roles['runes_reader']}\n")
    (tmp_path / "pgpass").chmod(0o600)
    command = ("-m", "hpo.status", "--study", "quickstart", "--storage", url)
    assert run(*command, PGPASSFILE=str(tmp_path / "pgpass")).returncode == 0
    without = run(*command, PGPASSFILE=str(tmp_path / "none"))
    assert without.returncode == 2
    assert "check user and password" in without.stderr
