"""Each service of docker-compose.yml: its own command, as a process, beside a real server."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from benchmarks.postgres import Postgres
from hpo.storage.open import load_study, open_storage

if TYPE_CHECKING:
    from tests.conftest import Forked, Nursery

REPO = Path(__file__).parents[2]


@dataclass(frozen=True)
class Compose:
    """The compose file with its variables filled in, whose services run as processes.

    Attributes:
        replaced: what is named otherwise outside of containers, by what it is in the file.
        nursery: where `fork` has processes from.
    """

    services: dict[str, Any]
    environment: Mapping[str, str]
    directory: Path
    replaced: Mapping[str, str]
    nursery: Nursery

    def command(self, name: str, *more: str) -> list[str]:
        """What the container of a service would run."""
        service = self.services[name]
        entry = service.get("entrypoint")
        if entry is None and service["image"].startswith("runes:"):
            entry = DockerfileParser(str(REPO / "Dockerfile")).structure
            (words,) = [x["value"] for x in entry if x["instruction"] == "ENTRYPOINT"]
            entry = yaml.safe_load(words)
        return self._here([*(entry or []), *service.get("command", []), *more])

    def start(self, name: str, *more: str, command: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start a service; ``command``: another than its own, in its environment."""
        return subprocess.Popen(
            self._here(list(command)) or self.command(name, *more),
            cwd=self.directory,
            env=self._environment(name),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def fork(self, name: str) -> Forked:
        """Start a service of this project without waiting for its imports."""
        python, *arguments = self.command(name)
        assert python == sys.executable
        number = len(list(self.directory.glob(f"{name}*.out")))
        out, err = (self.directory / f"{name}{number}.{kind}" for kind in ("out", "err"))
        return self.nursery.start(arguments, self.directory, self._environment(name), out, err)

    def _environment(self, name: str) -> dict[str, str]:
        given = self.services[name]["environment"]
        values = self._here([str(v) for v in given.values()])
        return {**self.environment, **dict(zip(given, values, strict=True))}

    def run(self, name: str, *more: str, command: Sequence[str] = ()) -> tuple[int, str, str]:
        """Exit code, output and errors of a service that ends."""
        process = self.start(name, *more, command=command)
        out, err = process.communicate(timeout=180)
        return process.returncode, out, err

    def _here(self, words: list[str]) -> list[str]:
        for there, here in self.replaced.items():
            words = [word.replace(there, here) for word in words]
        return [sys.executable if word == "python" else word for word in words]


@pytest.fixture
def compose(
    postgres: Postgres,
    tmp_path: Path,
    variables: dict[str, str],
    read_compose: Callable[[Mapping[str, str]], dict[str, Any]],
    make_roles: Callable[[str, Mapping[str, str]], None],
    study_text: Callable[..., str],
    cheap_nursery: Nursery,
) -> Compose:
    """The services, in a directory with studies, beside a server as the image sets it up."""
    for name in ("studies", "backups", "artifacts"):
        (tmp_path / name).mkdir()
    (tmp_path / "studies" / "tiny.toml").write_text(study_text("tiny", trials=3))
    (tmp_path / "studies" / "slow.toml").write_text(study_text("slow", trials=3, slow=True))
    postgres.sql("DROP DATABASE IF EXISTS runes WITH (FORCE)")
    postgres.sql("CREATE DATABASE runes")
    roles = ("owner", "worker", "reader")
    make_roles("runes", {f"runes_{r}": variables[f"RUNES_{r.upper()}_PASSWORD"] for r in roles})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Compose(
        read_compose(variables | {"STUDY": "tiny"})["services"],
        {
            "PATH": f"{postgres.programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPO),
            "OMP_NUM_THREADS": "1",
            # Where the host called postgres is, instead of a name service.
            "PGHOSTADDR": "127.0.0.1",
            "PGPORT": str(postgres.port),
        },
        tmp_path,
        {
            "/deploy": str(REPO / "deploy"),
            "/backups": str(tmp_path / "backups"),
            "/artifacts": str(tmp_path / "artifacts"),
            "0.0.0.0": "127.0.0.1",
            "8080": str(port),
        },
        cheap_nursery,
    )


def test_every_service_does_its_work(compose: Compose, postgres: Postgres) -> None:
    # postgres: ready by its health check; its settings are known.
    check = compose.services["postgres"]["healthcheck"]["test"][1:]
    assert compose.run("postgres", command=check)[0] == 0
    server = compose.command("postgres")
    assert server[0] == "postgres"
    for name in (option.removeprefix("--").split("=")[0] for option in server[1:]):
        assert postgres.sql(f"SELECT 1 FROM pg_settings WHERE name = '{name}'"), name

    # init: creates the study (tests/hpo/test_init.py: again, and nothing changes).
    code, out, err = compose.run("init")
    assert (code, err) == (0, "")
    assert out.endswith("1 instances; 0 trials queued, 0 running, 0 finished\n")

    # worker, scaled to two: exactly the budget, then both end for good.
    workers = [compose.fork("worker") for _ in range(2)]
    told = [worker.communicate(timeout=180)[1] for worker in workers]
    assert [w.returncode for w in workers] == [0, 0], told
    url = postgres.url("runes").replace("runes:a-password", owner_of(compose))
    before = load_study(open_storage(url), "tiny").trials
    assert [t.state.name for t in before] == ["COMPLETE"] * 3

    # dashboard: for those with the token, and for no writing.
    token = compose.services["dashboard"]["environment"]["RUNES_DASHBOARD_TOKEN"]
    dashboard = compose.start("dashboard")
    try:
        assert dashboard.stdout is not None
        assert ", read-only;" in dashboard.stdout.readline()
        host = dashboard.stdout.readline().split("/")[2]
        check = compose.services["dashboard"]["healthcheck"]["test"][1:]
        assert compose.run("dashboard", command=check)[0] == 0
        assert ask(host, "GET", "/api/studies")[0] == 401
        status, text = ask(host, "GET", "/api/studies", token)
        assert (status, [s["study_name"] for s in json.loads(text)["study_summaries"]]) == (
            200,
            ["tiny"],
        )
        assert ask(host, "DELETE", "/api/studies/1", token)[0] == 403
    finally:
        dashboard.terminate()
        assert dashboard.wait(20) == 0

    # backup, then a loss, then restore.
    (compose.directory / "artifacts" / "sheet.png").write_text("a picture")
    code, out, err = compose.run("backup")
    assert (code, err) == (0, "")
    dump, artifacts = (Path(line) for line in out.splitlines())
    assert (dump.suffix, artifacts.suffix) == (".dump", ".tar")
    assert dump.stat().st_mode & 0o077 == 0
    (compose.directory / "artifacts" / "sheet.png").unlink()
    open_storage(url).delete_study(1)
    code, out, err = compose.run("restore", dump.name)
    assert (code, out) == (0, f"restored {dump.name}\n"), err
    assert load_study(open_storage(url), "tiny").trials == before
    assert (compose.directory / "artifacts" / "sheet.png").read_text() == "a picture"
    code, _, err = compose.run("restore", "nothing.dump")
    assert code == 2
    assert err == f"error: write restore FILE.dump; {dump.parent} holds: {dump.name}\n"
    # After it everybody has his rights again.
    assert "done: 3 trials are finished" in compose.fork("worker").communicate(timeout=180)[1]


def test_a_worker_that_is_stopped_hands_its_trial_back_in_time(
    compose: Compose, postgres: Postgres
) -> None:
    worker = compose.services["worker"]
    for name in ("init", "worker"):
        compose.services[name]["environment"]["RUNES_STUDY"] = "slow"
    assert compose.fork("init").wait(180) == 0
    process = compose.fork("worker")
    url = postgres.url("runes").replace("runes:a-password", owner_of(compose))
    study = load_study(open_storage(url), "slow")
    deadline = time.monotonic() + 120
    while not study.get_trials(deepcopy=False) or not study.trials[0].params:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    code, _, err = compose.run("restore", (make_dump(compose)).name)
    assert code == 2
    assert "connections to runes; stop them first" in err
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - asked < float(worker["stop_grace_period"].removesuffix("s")) / 3
    assert process.returncode == 0, err
    assert [t.state.name for t in study.trials] == ["WAITING"]


@pytest.mark.parametrize(("code", "whole"), [(0, True), (1, True), (2, False)])
def test_files_that_come_while_a_backup_is_made_do_not_spoil_it(
    tmp_path: Path, code: int, whole: bool
) -> None:
    for name, line in [("pg_dump", "echo x > ${2#--file=}"), ("tar", f"echo x > $4; exit {code}")]:
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "backups").mkdir()
    done = subprocess.run(
        [REPO / "deploy" / "backup.sh"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "BACKUPS": str(tmp_path / "backups"),
            "ARTIFACTS": str(tmp_path),
            "PGDATABASE": "d",
        },
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == whole, done.stderr
    kinds = [path.suffix for path in (tmp_path / "backups").iterdir()]
    assert sorted(kinds) == [".dump", ".tar"][: 1 + whole]  # and nothing by halves


def make_dump(compose: Compose) -> Path:
    code, out, err = compose.run("backup")
    assert code == 0, err
    return Path(out.splitlines()[0])


def owner_of(compose: Compose) -> str:
    return f"runes_owner:{compose.services['init']['environment']['PGPASSWORD']}"


def ask(host: str, method: str, path: str, token: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, timeout=20)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()
