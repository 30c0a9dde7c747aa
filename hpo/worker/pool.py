"""``--workers N``: a pool of worker processes on one machine, watched and stopped as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from ..arguments import passed_on
from ..errors import EXIT_BAD_INPUT, UserError
from ..formatting import counted
from ..process.devices import choose_device, share_cores
from ..process.logging import info, start_log, warn
from ..process.signals import raise_if_stopped
from ..storage.tables import FINISHED
from .options import WorkerOptions

_POLL_S = 0.5
_DISPLAY_S = 3.0
_RESTART_S = 60.0  # a worker that died sooner after its start is not started again
_STOP_S = 20.0  # for all workers to release their trials


@dataclass
class _Worker:
    """A worker's process and what it was started with."""

    index: int
    process: subprocess.Popen[str]
    started: float
    printer: threading.Thread


def run_pool(options: WorkerOptions) -> int:
    """Run ``options.workers`` workers until all are done; returns the exit code.

    Raises:
        UserError: no worker could start, for a reason that all of them share.
        StopError: the pool was asked to stop; every worker has released its trial.
    """
    if options.seed is not None:
        raise UserError("--seed is one worker's; leave it out, or leave out --workers")
    # Before `choose_device`: workers choose again, from all devices that this process sees.
    environment = dict(os.environ)
    choose_device(options.device)
    from ..study.config import load_study_file

    config = load_study_file(options.study).on_drawings(
        options.alphabet, options.drawings, options.train
    )
    import optuna

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
    # Mistakes are reported here, once; and the tables exist before workers use them.
    storage, study = create(config, url, manifest)
    start_log("pool")
    info(f"{options.workers} workers of {counted(threads, 'thread')} each")

    def start(index: int) -> _Worker:
        alone = replace(options, workers=1, in_pool=True, threads=threads, device=devices[index])
        return _start(index, *passed_on(alone, environment))

    workers = [start(i) for i in range(options.workers)]
    codes: list[int] = []
    trials = options.trials or config.budget.trials
    try:
        with Display(config.name, trials, 0) as display:
            shown_at = 0.0
            while workers:
                for worker in [w for w in workers if w.process.poll() is not None]:
                    workers.remove(worker)
                    worker.printer.join(timeout=5)
                    code = worker.process.returncode
                    if code < 0 and time.monotonic() - worker.started > _RESTART_S:
                        warn(f"worker {worker.index} died of signal {-code}; starting another")
                        workers.append(start(worker.index))
                        continue
                    if code < 0:
                        warn(f"worker {worker.index} died of signal {-code}")
                    codes.append(code)
                if display.is_on and time.monotonic() - shown_at > _DISPLAY_S:
                    shown_at = time.monotonic()
                    display.show_study(study.get_trials(deepcopy=False, states=FINISHED))
                raise_if_stopped()
                time.sleep(_POLL_S)
    finally:
        _stop(workers)
    storage.remove_session()
    print_summary(study, config, options.study, url)
    if EXIT_BAD_INPUT in codes:
        return EXIT_BAD_INPUT
    return int(any(codes))


def _devices(options: WorkerOptions, n_gpus: int) -> list[str | None]:
    """A device for each worker: the GPUs in turn, unless the options name one."""
    if options.device not in (None, "cuda") or n_gpus < 2:
        return [options.device] * options.workers
    return [f"cuda:{i % n_gpus}" for i in range(options.workers)]


def _start(index: int, arguments: Sequence[str], environment: Mapping[str, str]) -> _Worker:
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
            tqdm.write(line.rstrip("\n"), file=sys.stderr)

    printer = threading.Thread(target=show, daemon=True)
    printer.start()
    return _Worker(index, process, time.monotonic(), printer)


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            # A batch system may have sent SIGTERM to each of them; a second would kill them.
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
