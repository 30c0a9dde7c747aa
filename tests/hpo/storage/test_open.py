"""Opening databases: what is set, and what a mistake looks like."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from benchmarks.postgres import PASSWORD, Postgres
from hpo.errors import UserError
from hpo.storage.open import open_storage, reading
from hpo.storage.tables import STATE_INDEX
from hpo.storage.url import parse_url, shown

REPO = Path(__file__).parents[3]


def test_passwords_are_never_shown() -> None:
    assert shown("postgresql://me:secret@host/runes") == "postgresql://me:***@host/runes"
    query = "sslmode=require&user=me&password=secret&sslpassword=secret"
    assert shown(f"postgresql://host/runes?{query}") == (
        "postgresql://host/runes?sslmode=require&user=me"
    )
    with pytest.raises(UserError) as error:
        shown("me:secret@host")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_is_reached_by_psycopg_3(scheme: str) -> None:
    assert parse_url(f"{scheme}://host/runes").drivername == "postgresql+psycopg"


def test_other_databases_are_refused_with_those_that_are_not() -> None:
    with pytest.raises(UserError, match=r"on mysql; write sqlite:///FILE.db or postgresql://"):
        open_storage("mysql://me:secret@host/runes")


def test_sqlite_keeps_a_write_ahead_log(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    with storage.engine.connect() as c:
        assert c.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert c.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_text("this is no database, however long it may be" * 100)
    with pytest.raises(UserError, match=r"sqlite:///.*s\.db: file is not a database"):
        open_storage(f"sqlite:///{path}")


def test_a_directory_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unable to open database file; check that its directory"):
        open_storage(f"sqlite:///{tmp_path}/no/s.db")


def test_a_read_only_database_is_one_line(tmp_path: Path) -> None:
    open_storage(f"sqlite:///{tmp_path}/s.db").engine.dispose()
    # By SQLite's own option: permissions don't bind the superuser.
    url = f"sqlite:///file:{tmp_path}/s.db?mode=ro&uri=true"
    with pytest.raises(UserError, match=r"readonly database; make the file and its directory"):
        open_storage(url)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    with sqlite3.connect(tmp_path / "s.db") as c:
        pages = c.execute("PRAGMA page_count").fetchone()[0]
    storage.engine.dispose()
    sa.event.listen(
        storage.engine,
        "connect",
        lambda c, _: c.execute(f"PRAGMA max_page_count={pages}"),
    )
    with pytest.raises(UserError, match=r"disk is full; free space on its disk"):
        storage.create_study("s", {"long": "x" * 100_000}, [])


def test_a_file_that_may_not_grow_is_one_line(tmp_path: Path) -> None:
    script = """
import sys
from hpo.errors import UserError
from hpo.storage.tables import STATE_INDEX
from hpo.storage.open import open_storage, reading
try:
    storage = open_storage(sys.argv[1])
    storage.create_study("s", {"long": "x" * 4_000_000}, [])
except UserError as error:
    print(error)
"""
    url = f"sqlite:///{tmp_path}/s.db"
    done = subprocess.run(
        [sys.executable, "-c", script, url],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPO)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "disk" in done.stdout


def test_a_newer_schema_is_one_line(url: str) -> None:
    storage = open_storage(url)
    with storage.engine.begin() as c:
        c.exec_driver_sql("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
        c.exec_driver_sql("UPDATE version_info SET library_version = '99.1.0'")
    with pytest.raises(UserError) as error:
        open_storage(url)
    message = str(error.value)
    assert "made by Optuna 99.1.0, and this is 5." in message
    assert "install that release, or name another database" in message
    assert PASSWORD not in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((PASSWORD, "wrong"), "password authentication failed"),
        (("127.0.0.1", "no-such-host.invalid"), "check host and port"),
        (("/runes_x", "/nothing_x"), "create that database, or name another"),
    ],
)
def test_a_server_that_does_not_let_in_is_one_line(
    postgres: Postgres, change: tuple[str, str], words: str
) -> None:
    url = postgres.url("runes_x").replace(*change)
    if words.startswith("password"):
        url = postgres.create("runes_password").replace(*change)
    with pytest.raises(UserError) as error:
        open_storage(url)
    message = str(error.value)
    assert words in message
    assert "\n" not in message
    assert PASSWORD not in message
    assert ":wrong@" not in message


def test_how_often_before_a_statement_is_prepared_may_be_said_in_the_url(
    postgres: Postgres,
) -> None:
    url = postgres.create("prepared")
    for words, threshold in [("", 5), ("?prepare_threshold=none", None)]:
        with open_storage(url + words).engine.connect() as c:
            assert c.connection.dbapi_connection.prepare_threshold == threshold  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"prepare_threshold .* is 'off'; write none, or a number"):
        open_storage(url + "?prepare_threshold=off")


def test_a_port_where_nobody_listens_is_one_line(postgres: Postgres) -> None:
    url = postgres.url("runes").replace(str(postgres.port), "9")
    with pytest.raises(UserError, match=r"Connection refused.*check host and port"):
        open_storage(url)


def test_a_transaction_that_the_server_ended_as_idle_is_run_again(postgres: Postgres) -> None:
    storage = open_storage(postgres.create("idle"))
    runs = []

    def work(c: sa.Connection) -> object:
        limit = c.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar()
        runs.append(limit)
        if len(runs) == 1:
            c.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 100")
            time.sleep(1)  # as a process does that is halted
        return c.exec_driver_sql("SELECT 1").scalar()

    assert storage.transact(work) == 1
    assert runs == ["2min", "2min"]


def indexes(url: str) -> set[str | None]:
    engine = sa.create_engine(parse_url(url))
    found = {index["name"] for index in sa.inspect(engine).get_indexes("trials")}
    engine.dispose()
    return found


def test_older_databases_get_the_index_that_claims_need(empty_url: str) -> None:
    optuna.storages.RDBStorage(parse_url(empty_url).render_as_string(hide_password=False))
    assert STATE_INDEX not in indexes(empty_url)
    for _ in range(2):
        open_storage(empty_url)
        assert STATE_INDEX in indexes(empty_url)


def test_a_user_without_the_right_to_add_an_index_may_work(postgres: Postgres) -> None:
    url = postgres.create("no_index")
    optuna.storages.RDBStorage(parse_url(url).render_as_string(hide_password=False))
    postgres.sql(f"CREATE ROLE hand LOGIN PASSWORD '{PASSWORD}'")
    grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO hand"
    postgres.sql(grant, "no_index")
    postgres.sql("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO hand", "no_index")
    storage = open_storage(url.replace("//runes:", "//hand:"), worker="me")
    assert STATE_INDEX not in indexes(url)
    assert storage.create_study("s", {}, [])
    assert isinstance(storage.claim(storage.get_study_id_from_name("s"), 1), int)


def test_a_stop_in_the_middle_of_a_read_stays_one(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    open_storage(url)
    with pytest.raises(KeyboardInterrupt), reading(url) as connection:
        monkeypatch.setattr(connection.dialect, "do_execute", stop)
        monkeypatch.setattr(connection.dialect, "do_execute_no_params", stop)
        connection.exec_driver_sql("SELECT 1")
