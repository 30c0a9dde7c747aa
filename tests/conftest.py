"""Fixtures that several tests share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from benchmarks.postgres import Postgres
    from finetune.data.runes import RuneSource

# Before torch is imported: tests run in several processes, which share the cores; so do the workers
# that they start.  The process that only hands out tests must set nothing, as others inherit it.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    _PROCESSES = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    _THREADS = str(max(1, (os.cpu_count() or 1) // _PROCESSES))
    os.environ.setdefault("OMP_NUM_THREADS", _THREADS)
    os.environ.setdefault("RUNES_THREADS", _THREADS)

# How long an example takes depends on what else the machine does.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

REPO = Path(__file__).parents[1]
# What processes import, some of it late: workers of a method without torch, and other workers
# besides.
_CHEAP = (
    *("hpo.worker.run", "hpo.worker.pool", "hpo.worker.objective", "hpo.worker.preview"),
    *("hpo.worker.summary", "hpo.worker.visuals", "hpo.artifacts.uploads", "hpo.study.create"),
    *("hpo.move.run", "hpo.status", "tests.cheap"),
    *("alembic.command", "alembic.ddl", "psycopg", "sqlalchemy.dialects.postgresql.psycopg"),
)
_WORKER = (
    *("torch", "hpo.problem.recipe_method", "hpo.problem.runes", "hpo.problem.instances"),
    *("hpo.problem.pictures", "finetune.side_by_side", "matplotlib.figure"),
)


# Files that take longest, the longest first; what is left for the end is short.
_FIRST = (
    *("hpo/storage/test_two_hosts", "hpo/storage/test_processes", "hpo/export/test_export"),
    *("hpo/storage/test_optuna_suite", "hpo/storage/test_contract", "hpo/move/test_move"),
    *("benchmarks/test_storage_benchmark", "finetune/augment/test_resizing"),
    *("finetune/submission/test_bundle", "hpo/dashboard/test_browser", "hpo/worker/test_worker"),
    *("finetune/test_real", "benchmarks/test_scale", "test_notebook", "finetune/test_challenge"),
    *("hpo/confirm/test_confirm", "finetune/augment/test_mix", "hpo/report/test_report"),
    *("benchmarks/test_throughput", "deploy/test_slurm", "finetune/augment/test_pen"),
    *("hpo/dashboard/test_server", "finetune/submission/test_loading", "hpo/storage/test_open"),
    *("finetune/machine/test_threads", "finetune/test_adapt", "hpo/test_init"),
    *("test_submission", "finetune/predict/test_posterior", "deploy/test_services"),
)


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Two more than there are cores: a third of the time goes into waiting for other processes.

    Unless somebody says how many (xdist's own variable).
    """
    n = yield
    return n if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else n + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files go to processes whole and in this order."""
    here = Path(__file__).parent
    order = {here / f"{name}.py": i for i, name in enumerate(_FIRST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


# What takes a part of a second or more, and is the same for the same arguments.
_REMEMBERED = {
    "finetune.augment.mix": ("rebuild", "trace", "correspondences"),
    "finetune.submission.bundle": ("_joined",),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A process remembers what such functions returned, once their modules are imported."""
    for module_name, names in _REMEMBERED.items():
        module = sys.modules.get(module_name)
        for name in names if module else ():
            function = getattr(module, name)
            if not hasattr(function, "remembers"):
                setattr(module, name, _remembering(function))


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[tuple[object, ...], Any] = {}

    def of(argument: Any) -> object:
        if isinstance(argument, Mapping):
            return tuple(argument.items())
        if hasattr(argument, "numpy"):
            values = argument.cpu().numpy().tobytes()
            return argument.shape, argument.dtype, str(argument.device), values
        return argument

    def remembering(*arguments: Any) -> Any:
        key = tuple(map(of, arguments))
        if key not in known:
            known[key] = function(*arguments)
        return known[key]

    remembering.remembers = True  # type: ignore[attr-defined]
    return remembering


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory with real Omniglot and MNIST; a test that asks for it skips without."""
    named = os.environ.get("RUNES_DATA")
    if not named:
        pytest.skip("needs real Omniglot: set RUNES_DATA")
    return Path(named)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for all tests of this process, which make databases of their own."""
    from benchmarks.postgres import Postgres

    with Postgres(quick=True) as server:
        yield server


@pytest.fixture(scope="session")
def drawn() -> RuneSource:
    from finetune.data.runes import open_drawn

    return open_drawn()


@pytest.fixture
def drawn_once(drawn: RuneSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens the drawn runes gets those that are there: to draw them takes a second."""
    monkeypatch.setattr("finetune.data.runes.open_drawn", lambda: drawn)


class Forked:
    """A process that a nursery forked; of `subprocess.Popen` what tests need."""

    returncode: int | None = None

    def __init__(self, nursery: Nursery, arguments: Sequence[str], pid: int, out: Path, err: Path):
        self.args = arguments
        self.pid = pid
        self.out, self.err = out, err
        self._nursery = nursery

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
            time.sleep(0.02)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Where processes come from that need not import everything first; see ``nursery.py``.

    Args:
        modules: those that it imports for them.
        options: of the interpreter.
        within: a command that runs the command after it elsewhere.
    """

    def __init__(
        self, modules: Sequence[str], options: Sequence[str] = (), within: Sequence[str] = ()
    ) -> None:
        script = str(Path(__file__).with_name("nursery.py"))
        # One thread: a process of several can't be forked.
        environment = {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "RUNES_THREADS": "1"}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [*within, sys.executable, *options, script, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
            text=True,
            start_new_session=True,
        )

    def ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(
        self,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        out: Path,
        err: Path,
    ) -> Forked:
        """A process as by ``python ARGUMENTS``, whose output goes to these files."""
        for file in (out, err):
            file.touch()
        places = {"cwd": str(cwd), "out": str(out), "err": str(err)}
        pid = self.ask({"arguments": list(arguments), "env": dict(env), **places})
        return Forked(self, arguments, pid, out, err)

    def run(
        self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], timeout_s: float = 300.0
    ) -> subprocess.CompletedProcess[str]:
        """Such a process, run to its end."""
        with tempfile.TemporaryDirectory() as directory:
            out, err = Path(directory, "out"), Path(directory, "err")
            process = self.start(arguments, cwd, env, out, err)
            try:
                said = process.communicate(timeout_s)
            finally:
                process.kill()
                process.wait()
            assert process.returncode is not None
            return subprocess.CompletedProcess(list(arguments), process.returncode, *said)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # with whom it has left behind
        self._process.communicate()


Process = Forked | subprocess.Popen[bytes]


@pytest.fixture
def ended() -> Iterator[list[Process]]:
    """Whatever a test puts here ends with it, if it has not."""
    started: list[Process] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


Nurse = Callable[..., Nursery]


@pytest.fixture(scope="session")
def nurse() -> Iterator[Nurse]:
    """The nursery of these arguments; there is one of each."""
    with ExitStack() as stack:
        known: dict[Any, Nursery] = {}

        def nurse(modules: tuple[str, ...], **more: tuple[str, ...]) -> Nursery:
            key = (modules, *sorted(more.items()))
            if key not in known:
                known[key] = stack.enter_context(Nursery(modules, **more))
            return known[key]

        yield nurse


@pytest.fixture(scope="session")
def cheap_nursery(nurse: Nurse) -> Nursery:
    """Of processes that work on a study without torch."""
    return nurse(_CHEAP)


@pytest.fixture(scope="session")
def worker_nursery(nurse: Nurse) -> Nursery:
    """Of whole workers."""
    return nurse(_CHEAP + _WORKER)
