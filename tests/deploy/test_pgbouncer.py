"""Workers through PgBouncer's transaction pooling, as docs/machines.md sets it up."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from benchmarks.postgres import Postgres
from hpo.storage.open import load_study, open_storage

REPO = Path(__file__).parents[2]
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture
def pooled(
    postgres: Postgres, database: str, roles: dict[str, str]
) -> Iterator[Callable[[str], str]]:
    """Makes a user's URL through a PgBouncer with four connections to the server."""
    if PROGRAM is None:
        pytest.skip("needs pgbouncer")
    text = (REPO / "docs" / "machines.md").read_text()
    (settings,) = re.findall(r"```ini\n(.*?)```", text, re.DOTALL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = postgres.directory / f"pgbouncer{port}"
    directory.mkdir()
    (directory / "users.txt").write_text("".join(f'"{u}" "{p}"\n' for u, p in roles.items()))
    settings = settings.replace("host=HOST dbname=runes", f"host=127.0.0.1 dbname={database}")
    settings = settings.replace("port=5432", f"port={postgres.port}")
    settings = settings.replace("listen_port = 6432", f"listen_port = {port}")
    settings = settings.replace("/etc/pgbouncer", str(directory))
    (directory / "pgbouncer.ini").write_text(settings + "unix_socket_dir =\n")
    owner = postgres.directory.owner()  # it does not run as root
    for path in (directory, *directory.iterdir()):
        shutil.chown(path, owner)
    process = subprocess.Popen(
        [PROGRAM, str(directory / "pgbouncer.ini")],
        user=owner if os.getuid() == 0 else None,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield (
        lambda user: (
            f"postgresql://{user}:{roles[user]}@127.0.0.1:{port}/runes?prepare_threshold=none"
        )
    )
    process.terminate()
    process.wait()


def test_workers_share_a_few_connections_and_lose_nothing(
    pooled: Callable[[str], str], url: Callable[[str], str], postgres: Postgres, database: str
) -> None:
    # The tables, too: the lock while they are made must not stay with the pooler.
    open_storage(pooled("runes_owner")).engine.dispose()
    with psycopg.connect(url("runes_owner")) as connection:
        locks = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert locks.fetchone() == (0,)
    script = str(REPO / "tests" / "hpo" / "cheap_worker.py")
    options = ("reports=6", "step_s=0.05", "heartbeat_s=0.2", "grace_s=60")
    workers = [
        subprocess.Popen(
            [sys.executable, script, pooled("runes_worker"), "40", *options],
            env=os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    most = 0
    while any(worker.poll() is None for worker in workers):
        query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'"
        query += " AND usename = 'runes_worker'"
        most = max(most, int(postgres.sql(query)))
        time.sleep(0.3)
    told = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 6, told
    assert not any("no heartbeat" in words or "trying again" in words for words in told), told
    trials = load_study(open_storage(url("runes_reader")), "cheap").trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 40
    assert all(list(t.intermediate_values) == [1, 2, 3, 4, 5, 6] for t in trials)
    assert len({t.user_attrs["worker"] for t in trials}) == 6
    assert 1 <= most <= 4
