"""For tests that ask: databases of both kinds, processes, a browser, a WSGI client."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes
from wsgiref.types import WSGIApplication
from wsgiref.util import setup_testing_defaults

import optuna
import pytest

from benchmarks.browser import chromium, find_chromium
from benchmarks.postgres import Postgres
from hpo.errors import UserError
from hpo.storage.open import open_storage

if TYPE_CHECKING:
    from tests.conftest import Nursery, Process

REPO = Path(__file__).parents[2]
SHOTS = REPO / "build" / "screenshots"
_NUMBERS = itertools.count()


@pytest.fixture
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Makes an empty database of a kind; returns its URL."""

    def make(kind: str) -> str:
        name = f"test_{next(_NUMBERS)}"
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/{name}.db"
        server: Postgres = request.getfixturevalue("postgres")
        return server.create(name)

    return make


@pytest.fixture(scope="session")
def with_tables(tmp_path_factory: pytest.TempPathFactory, request: Any) -> Callable[[str], str]:
    """The path or name of a database of a kind in which tables have been made, to be copied."""

    @functools.cache
    def make(kind: str) -> str:
        if kind == "sqlite":
            path = str(tmp_path_factory.mktemp("tables") / "tables.db")
            open_storage(f"sqlite:///{path}").engine.dispose()
            return path
        server: Postgres = request.getfixturevalue("postgres")
        open_storage(server.create("tables")).engine.dispose()
        return "tables"

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_url(database_kind: str, new_database: Callable[[str], str]) -> str:
    """A database without tables."""
    return new_database(database_kind)


@pytest.fixture
def url(
    database_kind: str,
    with_tables: Callable[[str], str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> str:
    """A database with tables and nothing in them: to copy one is quicker than to make tables."""
    template, name = with_tables(database_kind), f"test_{next(_NUMBERS)}"
    if database_kind == "sqlite":
        shutil.copy(template, tmp_path / f"{name}.db")
        return f"sqlite:///{tmp_path}/{name}.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.create(name, template)


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield


@dataclass(frozen=True)
class Answer:
    """What a WSGI application said."""

    status: int
    headers: dict[str, str]  # by their names in lower case
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture
def ask() -> Callable[..., Answer]:
    """Asks a WSGI application, as a server would that has parsed the request."""

    def ask(
        app: WSGIApplication,
        path: str,
        method: str = "GET",
        content: object = None,
        **environ: str,
    ) -> Answer:
        """``content``: a form if it is text, else JSON."""
        path, _, query = path.partition("?")
        full: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "HTTP_HOST": "127.0.0.1:8080",
            "REMOTE_ADDR": "127.0.0.1",
        }
        if content is not None:
            is_form = isinstance(content, str)
            sent = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            full["CONTENT_TYPE"] = (
                "application/x-www-form-urlencoded" if is_form else "application/json"
            )
            full["CONTENT_LENGTH"] = str(len(sent))
            full["wsgi.input"] = io.BytesIO(sent)
        full.update(environ)
        setup_testing_defaults(full)
        started: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], _: object = None) -> object:
            started[:] = [status, headers]
            return None

        chunks = app(full, start)  # type: ignore[arg-type]
        try:
            body = b"".join(chunks)
        finally:
            getattr(chunks, "close", lambda: None)()
        status, headers = started
        names = [name.lower() for name, _ in headers]
        assert len(set(names)) == len(names), headers
        return Answer(int(status.split()[0]), {k.lower(): v for k, v in headers}, body)

    return ask


@pytest.fixture
def launch(tmp_path: Path, ended: list[Process]) -> Callable[..., Process]:
    """Starts Python on one thread, of a nursery if there is one, and ends it in the end.

    What it says as errors goes to a file, the process's ``log_path``.
    """

    def launch(arguments: list[str], nursery: Nursery | None = None) -> Process:
        log, out = tmp_path / f"process{len(ended)}.log", Path(os.devnull)
        environment = dict(os.environ, PYTHONPATH=str(REPO), OMP_NUM_THREADS="1")
        process: Process
        if nursery is not None:
            process = nursery.start(arguments, Path.cwd(), environment, out, log)
        else:
            with log.open("w") as errors, out.open("w") as output:
                command = [sys.executable, *arguments]
                process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        process.log_path = log  # type: ignore[union-attr]
        ended.append(process)
        return process

    return launch


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; pictures may go to ``build/screenshots``, which is there."""
    pytest.importorskip("playwright", reason="needs Playwright: pip install -e '.[browser]'")
    try:
        find_chromium()
    except UserError as error:
        pytest.skip(str(error))
    SHOTS.mkdir(parents=True, exist_ok=True)
    with chromium() as opened:
        yield opened
