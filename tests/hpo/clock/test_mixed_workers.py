"""One study by workers of mixed kinds: losses do not depend on who measured them."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import TrialState
from PIL import Image

from finetune.data.synthetic import draw_rune
from hpo.clock.profile import Profile
from hpo.problem.base import Instance, Method, Values
from hpo.problem.measure import measure
from hpo.storage.open import load_study, open_storage
from hpo.study.config import load_study_file
from hpo.trial.ranking import best_trials
from hpo.trial.record import read_trial
from tests.settings import torch_threads

if TYPE_CHECKING:
    import pytest

    from tests.conftest import Forked, Nursery, Process

ROOT = Path(__file__).parents[3]
LRS = [1e-4 * 2**k for k in range(8)]
STEPS = 4  # that the machine makes of 40
STUDY = """
name = "mixed"
storage = "sqlite:///mixed.db"
[clock]
machine = "./machine.toml"
[instances]
drawings = "drawings"
[estimator]
strata = 2
replicates = 2
[pruner]
name = "none"
[fixed]
steps = 40
batch_size = 2
bank_images = 64
window_images = 0
render = "direct"
[space.lr]
type = "float"
low = 1e-5
high = 1e-1
log = true
""" + "".join(f"[[start]]\nlr = {lr}\n" for lr in LRS)


def machine(method: Method, values: Values, instance: Instance) -> Profile:
    """A machine that makes `STEPS` steps of such a recipe in the deadline."""
    work = method.workload(values, instance)
    assert work is not None
    step_s = (work.deadline_s - 7.0) / (STEPS + 0.5)
    return Profile(
        machine={},
        method="recipe",
        precision="auto",
        startup=dict.fromkeys(work.startup, 0.0) | {"call": 7.0},
        step=dict.fromkeys(work.step, 0.0) | {"step": step_s},
    )


@contextmanager
def throttled(process: Forked) -> Iterator[None]:
    """The process runs half of the time."""
    over = threading.Event()

    def halt_by_turns() -> None:
        while not over.is_set():
            process.send_signal(signal.SIGSTOP)
            over.wait(0.05)
            process.send_signal(signal.SIGCONT)
            over.wait(0.05)

    thread = threading.Thread(target=halt_by_turns)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        process.send_signal(signal.SIGCONT)


def test_losses_and_outcome_do_not_depend_on_the_worker(
    tmp_path: Path,
    worker_nursery: Nursery,
    ended: list[Process],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mixed.toml").write_text(STUDY)
    # Two drawings: the package's own runes take each worker a second.
    Path("drawings").mkdir()
    for number, bitmap in enumerate(draw_rune("thorn", 4, seed=0).numpy()):
        Image.fromarray(255 - 255 * bitmap).save(f"drawings/{number}.png")
    config = load_study_file("./mixed.toml")
    method, problem = config.load_method(), config.load_problem(None)
    instances = problem.instances()
    of_machine = machine(method, method.complete(config.fixed), instances[0])
    Path("machine.toml").write_text(of_machine.to_toml())

    environment = {k: v for k, v in os.environ.items() if not k.startswith("RUNES")}
    environment |= {"PYTHONPATH": str(ROOT), "RUNES_ARTIFACTS": "none", "RUNES_DEVICE": "cpu"}

    def start(threads: int) -> Forked:
        name = f"worker-{len(ended)}"
        command = ["-m", "hpo.worker", "--study", "./mixed.toml", "--trials", str(len(LRS))]
        command += ["--threads", str(threads)]
        files = tmp_path / f"{name}.out", tmp_path / f"{name}.err"
        process = worker_nursery.start(command, tmp_path, environment, *files)
        ended.append(process)
        return process

    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    ended.append(busy)
    workers = [start(2), start(1), start(1), start(2)]
    with throttled(workers[-1]):
        assert [worker.wait(120) for worker in workers[:-1]] == [0, 0, 0], workers[
            0
        ].err.read_text()
    assert workers[-1].wait(120) == 0
    busy.kill()

    study = load_study(open_storage(config.storage), config.name)
    trials = study.get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * len(LRS)
    records = {t.params["lr"]: read_trial(t) for t in trials}
    assert len({record.worker for record in records.values()}) > 1
    assert {c.steps for record in records.values() for c in record.instances} == {STEPS}

    # The same recipes once more, here.
    clock = config.load_clock()
    assert clock is not None
    alone = {}
    for lr, threads in zip(LRS, itertools.cycle((1, 2))):
        values = method.complete({**config.fixed, "lr": lr})
        steps = [clock.plan(method, values, instance).steps for instance in instances]
        with torch_threads(threads):
            made = measure(method, problem, values, instances, 1e4, lambda *_: None, steps=steps)
        alone[lr] = [call.evaluation.loss for call in made]
    assert {lr: [c.loss for c in record.instances] for lr, record in records.items()} == alone
    (best,) = best_trials(study.trials, 1)
    assert best.params["lr"] == min(alone, key=lambda lr: alone[lr][0])
