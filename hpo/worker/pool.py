"""``--workers N``: a pool of worker processes on one machine, watched and stopped as one.

A worker that dies of a signal is replaced: at first at once, then after pauses that double up to a
minute. The pool gives up when every remaining worker died three times in a row before it joined the
study, because then the machine or the installation is at fault.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..arguments import passed_on
from ..errors import EXIT_BAD_INPUT, EXIT_DATABASE_AWAY, EXIT_FAILED, UserError
from ..formatting import counted
from ..process.devices import check_room, choose_device, share_cores
from ..process.logging import info, start_log, warn, write_line
from ..process.signals import raise_if_stopped
from ..storage.tables import FINISHED
from .options import WorkerOptions

_POLL_S = 0.5
_DISPLAY_S = 3.0
_PAUSES_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)  # before a worker is started again
_LONG_S = 60.0  # a worker that lived for so long is replaced without a pause
_FALSE_STARTS = 3  # so many in a row, of every worker, end the pool
_STOP_S = 20.0  # time limit for all workers to release their trials


@dataclass
class _Worker:
    """A worker's process."""

    process: subprocess.Popen[str]
    printer: threading.Thread
    joined: threading.Event  # set once it is in the study
    started: float = field(default_factory=time.monotonic)


@dataclass
class _Place:
    """One worker's place in the pool; a worker that dies is replaced."""

    index: int
    worker: _Worker | None = None  # the latest
    deaths: int = 0  # in a row, each within `_LONG_S` of a start
    false_starts: int = 0  # in a row, each before the worker was in the study
    start_at: float | None = 0.0  # when to start a worker; None while one runs

    def replace(self, dead: _Worker) -> None:
        """Log that the worker died, and schedule its replacement."""
        now = time.monotonic()
        self.false_starts = 0 if dead.joined.is_set() else self.false_starts + 1
        self.deaths = 0 if now - dead.started > _LONG_S else self.deaths + 1
        pause_s = _PAUSES_S[min(max(self.deaths - 1, 0), len(_PAUSES_S) - 1)]
        self.start_at = now + pause_s
        when = f" in {pause_s:g} s" if pause_s else ""
        died = f"worker {self.index} died of signal {-dead.process.returncode}"
        warn(f"{died}; starting another{when}")


def run_pool(options: WorkerOptions) -> int:
    """Run ``options.workers`` workers until all are done; returns the exit code.

    Raises:
        UserError: no worker could start, for the same reason, or the machine has no room for so
            many.
        StopError: the pool was asked to stop; every worker has released its trial.
    """
    if options.seed is not None:
        raise UserError("--seed is one worker's; leave it out, or leave out --workers")
    check_room(options.workers)
    # Copied before `choose_device` changes it: workers choose again from all devices.
    environment = dict(os.environ)
    choose_device(options.device)
    from ..study.config import load_study_file

    config = load_study_file(options.study).on_drawings(
        options.alphabet, options.drawings, options.train
    )
    import optuna

    from ..storage.url import study_argument
    from ..study.create import create
    from ..study.manifest import make_manifest
    from .display import Display
    from .summary import print_summary

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    threads = options.threads or share_cores(options.workers)
    method = config.load_method()
    method.prepare(options.device, threads)
    devices = _devices(options, method.count_gpus())
    url = config.storage_url(options.storage)
    manifest = make_manifest(config, config.load_problem(options.data))
    # Done here so that mistakes are reported once, and the tables exist before workers use them.
    storage, study = create(config, url, manifest)
    start_log("pool")
    info(f"{options.workers} workers of {counted(threads, 'thread')} each")

    def start(index: int) -> _Worker:
        alone = replace(options, workers=1, in_pool=True, threads=threads, device=devices[index])
        return _start(config.name, *passed_on(alone, environment))

    with Display(config.name, options.trials or config.budget.trials, 0) as display:
        shown_at = 0.0

        def show() -> None:
            nonlocal shown_at
            if display.is_on and time.monotonic() - shown_at > _DISPLAY_S:
                shown_at = time.monotonic()
                display.show_study(study.get_trials(deepcopy=False, states=FINISHED))

        codes = _watch([_Place(i) for i in range(options.workers)], start, show)
    for code in (EXIT_BAD_INPUT, EXIT_DATABASE_AWAY):
        if code in codes:
            return code
    storage.remove_session()
    print_summary(study, config, study_argument(options.study, options.storage), url)
    return int(any(codes))


def _watch(
    places: list[_Place], start: Callable[[int], _Worker], show: Callable[[], None]
) -> list[int]:
    """Start a worker for each place and replace those that die of a signal; returns exit codes.

    Args:
        start: starts the worker of the place with this index.
        show: called several times a second.
    """
    codes: list[int] = []
    try:
        while places:
            now = time.monotonic()
            for place in list(places):
                worker = place.worker
                if place.start_at is not None:
                    if now >= place.start_at:
                        place.worker, place.start_at = start(place.index), None
                elif worker is not None and (code := worker.process.poll()) is not None:
                    worker.printer.join(timeout=5)
                    if code < 0:
                        place.replace(worker)
                    else:
                        codes.append(code)
                        places.remove(place)
            if places and all(p.false_starts >= _FALSE_STARTS for p in places):
                warn(f"every worker died at its start, {_FALSE_STARTS} times in a row; giving up")
                return codes or [EXIT_FAILED]
            show()
            raise_if_stopped()
            time.sleep(_POLL_S)
    finally:
        _stop([place.worker for place in places if place.worker is not None])
    return codes


def _devices(options: WorkerOptions, n_gpus: int) -> list[str | None]:
    """A device for each worker: the GPUs in turn, unless the options name one."""
    if options.device not in (None, "cuda") or n_gpus < 2:
        return [options.device] * options.workers
    return [f"cuda:{i % n_gpus}" for i in range(options.workers)]


def _start(study: str, arguments: Sequence[str], environment: Mapping[str, str]) -> _Worker:
    joined = threading.Event()
    process = subprocess.Popen(
        [sys.executable, "-m", "hpo.worker", *arguments],
        stdin=subprocess.PIPE,  # closed when this process ends, however it ends
        stderr=subprocess.PIPE,
        text=True,
        # A terminal's Ctrl-C reaches this process alone, which then stops the workers once.
        start_new_session=True,
        env=environment,
    )

    def show() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if f" study {study}: " in line:  # a worker's first line
                joined.set()
            write_line(line.rstrip("\n"))

    printer = threading.Thread(target=show, daemon=True)
    printer.start()
    return _Worker(process, printer, joined)


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            # A batch system may have sent SIGTERM to every worker; a second one would kill it.
            worker.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + _STOP_S
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
        worker.printer.join(timeout=1)


def stop_with_parent() -> None:
    """Stop this worker cleanly when the pool that started it is gone."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
