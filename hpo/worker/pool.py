"""``--workers N``: workers side by side on one machine, started, watched and stopped as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from finetune.errors import EXIT_BAD_INPUT, UserError

from ..arguments import Options
from ..process.devices import check_device, choose_device, share_cores
from ..process.logging import info, start_log, warn
from ..process.signals import raise_if_stopped
from ..storage.tables import FINISHED

_LOOK_S = 0.5
_SHOW_S = 3.0
_LIVED_S = 60.0  # a worker that died younger than this is not started again
_STOP_S = 20.0  # for all to hand back their trials


@dataclass
class _Worker:
    """A worker's process and what it was started with."""

    index: int
    process: subprocess.Popen[str]
    started: float
    printer: threading.Thread


def run_fleet(options: Options) -> int:
    """Run ``options.workers`` workers until all are done; returns the exit code.

    Raises:
        UserError: what each worker would have to say, said once.
        StopError: asked to stop; every worker has handed back its trial.
    """
    if options.seed is not None:
        raise UserError("--seed is one worker's; leave it out, or leave out --workers")
    # Workers choose their devices themselves, from all that were left to this process.
    environment = {k: v for k, v in os.environ.items() if k != "RUNES_WORKERS"}
    choose_device(options.device)
    from ..study.config import load_study_file

    config = load_study_file(options.study).on_drawings(
        options.alphabet, options.drawings, options.train
    )
    import optuna
    import torch

    from ..problem.instances import load_measuring
    from ..study.create import create
    from .display import Display
    from .summary import print_summary

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    check_device(options.device)
    devices = _devices(options, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    threads = options.threads or share_cores(options.workers)
    url = config.storage_url(options.storage)
    # Mistakes come out here, once, and the tables are there before the workers come.
    storage, study = create(config, url, load_measuring(config, options.data).manifest)
    start_log("fleet")
    info(f"{options.workers} workers of {threads} thread{'' if threads == 1 else 's'} each")

    def start(index: int) -> _Worker:
        arguments = [*_arguments(options), "--threads", str(threads)]
        if devices[index] is not None:
            arguments += ["--device", str(devices[index])]
        return _start(index, arguments, environment)

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
                    if code < 0 and time.monotonic() - worker.started > _LIVED_S:
                        warn(f"worker {worker.index} died of signal {-code}; starting another")
                        workers.append(start(worker.index))
                        continue
                    if code < 0:
                        warn(f"worker {worker.index} died of signal {-code}")
                    codes.append(code)
                if display.is_on and time.monotonic() - shown_at > _SHOW_S:
                    shown_at = time.monotonic()
                    display.show_study(study.get_trials(deepcopy=False, states=FINISHED))
                raise_if_stopped()
                time.sleep(_LOOK_S)
    finally:
        _stop(workers)
    storage.remove_session()
    print_summary(study, config, options.study)
    if EXIT_BAD_INPUT in codes:
        return EXIT_BAD_INPUT
    return int(any(codes))


def _devices(options: Options, n_gpus: int) -> list[str | None]:
    """A device for each worker: GPUs in turn, unless one is asked for."""
    if options.device not in (None, "cuda") or n_gpus < 2:
        return [options.device] * options.workers
    return [f"cuda:{i % n_gpus}" for i in range(options.workers)]


def _arguments(options: Options) -> list[str]:
    arguments = ["--study", options.study, "--workers", "1", "--under-fleet"]
    drawings = ("data", "alphabet", "drawings", "train")
    for name in ("storage", "artifacts", *drawings, "trials", "seconds", "together", "sampler"):
        value = getattr(options, name)
        if value is not None:
            arguments += [f"--{name}", str(value)]
    return arguments


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
            # A batch system may have sent each of them SIGTERM too: a second would be the end.
            worker.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + _STOP_S
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
        worker.printer.join(timeout=1)


def stop_with_parent() -> None:
    """Stop this worker, properly, when the fleet that started it is gone."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
