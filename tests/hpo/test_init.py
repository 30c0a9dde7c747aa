"""`python -m hpo.init`: a study is created once, and a server that starts is waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.postgres import PASSWORD, Postgres
from hpo.errors import UserError
from hpo.init import InitOptions, init, main
from hpo.storage.open import load_study, open_storage
from hpo.study.manifest import MANIFEST_KEY

if TYPE_CHECKING:
    from tests.conftest import Nursery

REPO = Path(__file__).parents[2]
RunInit = Callable[..., subprocess.CompletedProcess[str]]
STUDY = str(REPO / "tests" / "cheap.toml")


def cheap(url: str, wait_s: float = 0.0) -> InitOptions:
    return InitOptions(study=STUDY, storage=url, wait=wait_s)


@pytest.fixture
def run_init(cheap_nursery: Nursery) -> RunInit:
    """Runs the command as a process; deploy/test_services.py starts one from nothing."""

    def run_init(url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["-m", "hpo.init", "--storage", url, *arguments]
        return cheap_nursery.run(command, REPO, os.environ | environment)

    return run_init


def test_a_study_is_created_with_its_manifest_and_queue_and_then_left_alone(
    empty_url: str, run_init: RunInit
) -> None:
    line = init(cheap(empty_url))
    assert line.startswith("study cheap is ready in ")
    assert line.endswith("2 instances; 2 trials queued, 0 running, 0 finished")
    assert PASSWORD not in line
    study = load_study(open_storage(empty_url), "cheap")
    manifest = study.user_attrs[MANIFEST_KEY]
    assert {"code", "data", "networks", "space"} <= manifest.keys()
    again = run_init(empty_url, RUNES_STUDY=STUDY)
    assert (again.returncode, again.stdout, again.stderr) == (0, f"{line}\n", "")
    assert load_study(open_storage(empty_url), "cheap").user_attrs[MANIFEST_KEY] == manifest


MANY = """
import os, sys
import alembic.command, alembic.ddl, psycopg  # which takes time, and only once in this way
import hpo.study.create
from hpo.init import InitOptions, init

def child():
    line = init(InitOptions(study=sys.argv[2], storage=sys.argv[1], wait=0.0))
    os.write(1, f"{line}\\n".encode())  # in one piece: four of them write to one pipe
    os._exit(0)

pids = [os.fork() or child() for _ in range(4)]
sys.exit(any(os.waitpid(pid, 0)[1] for pid in pids))
"""


def test_many_at_once_make_one_study(empty_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY, empty_url, STUDY],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 4
    assert len(set(done.stdout.splitlines())) == 1
    assert len(load_study(open_storage(empty_url), "cheap").trials) == 2


def test_a_study_that_measures_something_else_is_refused(
    new_database: Callable[[str], str], tmp_path: Path, run_init: RunInit
) -> None:
    url = new_database("sqlite")
    init(cheap(url))
    other = tmp_path / "other.toml"
    text = Path(STUDY).read_text()
    other.write_text(text.replace("strata = 20", "strata = 21"))
    refused = run_init(url, "--study", str(other))
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: study cheap was made with other estimator")


def test_a_server_that_starts_late_is_waited_for(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.create("starts_late")

    def start() -> None:
        while "trying again in" not in caplog.text:
            time.sleep(0.05)
        postgres.start()

    postgres.stop()
    starter = threading.Thread(target=start)
    starter.start()
    try:
        line = init(cheap(url, 60.0))
    finally:
        starter.join()
    assert line.startswith("study cheap is ready in ")
    assert "answers again after" in caplog.text
    assert PASSWORD not in line + caplog.text


def test_waiting_ends(postgres: Postgres) -> None:
    url = postgres.url("x").replace(str(postgres.port), "9")
    with pytest.raises(UserError) as error:
        init(cheap(url, 1.0))
    said = str(error.value)
    assert said.startswith("postgresql://")
    assert "check host and port, and that the server runs; gave up after" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((PASSWORD, "wrong"), "check user and password"),
        (("/refused", "/nothing"), "create that database, or name another"),
        (("/refused", "/refused?sslmode=require"), "set up TLS on the server"),
        (("/refused", "/refused?sslmode=strict"), "write sslmode=verify-full"),
    ],
)
def test_a_refusal_is_not_waited_for(
    postgres: Postgres, change: tuple[str, str], words: str
) -> None:
    if not postgres.sql("SELECT 1 FROM pg_database WHERE datname = 'refused'"):
        postgres.create("refused")
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        init(cheap(postgres.url("refused").replace(*change), 300.0))
    assert time.monotonic() - started < 60
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert PASSWORD not in str(error.value)


def test_bad_input_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_init: RunInit
) -> None:
    monkeypatch.delenv("RUNES_STUDY", raising=False)
    for arguments, words in [
        (["--study", "quickstart", "--wait", "-1"], "--wait is -1; write 0 or more"),
        (["--study", "nothing"], "no study 'nothing'; write one of "),
    ]:
        with pytest.raises(UserError, match=words):
            main(arguments)
    refused = run_init(f"sqlite:///{tmp_path}/s.db")
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: --study is missing; write a name in studies/")
