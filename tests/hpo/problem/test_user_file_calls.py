"""Calls of a person's file: each in a process of its own, whatever the file does."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from finetune.challenge import set_seed
from finetune.data.runes import Split
from finetune.model.unet import ConditionalDiffusionUNet
from hpo.errors import UserError
from hpo.problem.base import CallFailedError, NotFiniteError, OutOfTimeError, Progress
from hpo.problem.file_method import FileMethod
from hpo.problem.instances import RuneInstance
from hpo.problem.measure import Measurement, measure
from hpo.problem.runes import RuneProblem
from hpo.problem.settings import Confirm, Estimator, Instances
from hpo.problem.user_file import runner, speed
from hpo.trial.outcome import Outcome, ending_of

HEAD = "import os, sys, time, torch\n"
# What a test puts into a function of one parameter.
BODY = HEAD + "def finetune_model(net, data, lr=0.5):\n    "
GOOD = BODY + "return net"


@pytest.fixture(scope="module")
def instance() -> RuneInstance:
    torch.manual_seed(0)
    network = ConditionalDiffusionUNet()
    numbers = torch.Generator().manual_seed(0)
    drawings = torch.rand(4, 1, 28, 28, generator=numbers)
    return RuneInstance("r", 0, "unet_1", 3, network, Split(drawings[:2], drawings[2:]))


@pytest.fixture(scope="module", autouse=True)
def one_server() -> Iterator[None]:
    yield
    runner.stop_server()


Run = Callable[..., Measurement]


@pytest.fixture
def run(instance: RuneInstance) -> Run:
    """Measures a file on the instance, with its own values."""

    def run(
        text: str,
        limit_s: float = 60.0,
        memory_gb: float = 8.0,
        seen: list[Progress] | None = None,
        steps: str | None = None,
        path: Path = Path("mine.py"),
    ) -> Measurement:
        method = FileMethod(path, text, None, steps, memory_gb)
        problem = RuneProblem(
            Instances(source="drawn"), Estimator(strata=2, replicates=2), Confirm()
        )

        def on_step(_: int, progress: Progress) -> None:
            if seen is not None:
                seen.append(progress)

        (measured,) = measure(method, problem, {}, [instance], limit_s, on_step)
        return measured

    return run


# A file that gives the network its eleventh class.
CLASS = """
    net.class_embedding = torch.nn.Embedding(11, 16)
    torch.nn.init.zeros_(net.class_embedding.weight)
    """


def test_a_file_gets_what_the_course_gives(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    measured = run(
        HEAD
        + "import numpy as np, random, matplotlib.pyplot as plt\n"
        + "from torch.utils.data import DataLoader\n"
        + "from tqdm import tqdm, trange\n"
        + "assert __name__ != '__main__' and device.type in ('cpu', 'cuda')\n"
        + "def finetune_model(net, data, lr=0.5):"
        + CLASS
        + "net = net.cuda() if torch.cuda.is_available() else net\n"
        + "    assert type(net) is ConditionalDiffusionUNet and len(data) == 2\n"
        + "    drawn = [torch.rand(1).item(), np.random.rand(), random.random()]\n"
        + "    optimizer = torch.optim.SGD(net.parameters(), lr=lr)\n"
        + "    for images, labels in tqdm(DataLoader(data, batch_size=1, num_workers=2)):\n"
        + "        assert images.shape == (1, 1, 28, 28) and labels.tolist() == [10]\n"
        + "        optimizer.step()\n"
        + "    plt.plot([1]); plt.show(); open('scratch', 'w').close()\n"
        + "    print('drawn', drawn)\n"
        + "    return net\n"
    )
    assert measured.steps == 2
    assert measured.evaluation.loss > 0
    assert measured.evaluation.cost == pytest.approx(1.0, abs=0.9)
    said = measured.output.splitlines()
    assert "2/2" in said[0], "of the bar its last state"
    set_seed(3)
    torch.nn.Embedding(11, 16)
    assert said[1] == f"drawn {[torch.rand(1).item(), np.random.rand(), random.random()]}"
    assert not Path("scratch").exists()
    assert capfd.readouterr() == ("", ""), "what a file prints is not the worker's"


def test_equal_calls_agree_and_leave_nothing(run: Run) -> None:
    text = (
        HEAD
        + "calls = []\n"
        + BODY.removeprefix(HEAD)
        + CLASS
        + "calls.append(1); assert len(calls) == 1\n"
        + "    torch.nn.init.normal_(net.class_embedding.weight)\n"
        + "    torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)\n"
        + "    return net\n"
    )
    first, second = run(text), run(text)
    assert first.evaluation.loss == second.evaluation.loss
    assert torch.get_default_dtype() == torch.float32


# What a call fails of, and the line that says so.
HOSTILE = {
    "an error": ("raise ValueError('no\\nyes')", r"^r/0/3: mine.py line 3: ValueError: no$"),
    "sys.exit": ("sys.exit(4)", r"mine.py line 3: it called sys.exit\(4\)$"),
    "os._exit": ("os._exit(7)", r"mine.py ended its process \(exit code 7\) before it returned$"),
    "a crash": ("os.kill(os.getpid(), 11)", r"mine.py was ended by SIGSEGV$"),
    "a missing import": ("import nowhere", r"line 3: ModuleNotFoundError: No module named 'nowhe"),
    "nothing": ("pass", r"finetune_model returned nothing; return the network, a torch.nn.Module"),
    "a tensor": ("return torch.zeros(2)", r"returned a tensor of shape \(2,\); return the network"),
    "no device": ("return net.to('meta')", r"network can't be scored: NotImplementedError: Cannot"),
    "too few classes": ("return net", r"network can't be scored: IndexError: index out of range"),
    "no network": ("return torch.nn.Sequential()", r"network can't be scored: TypeError: "),
}


@pytest.mark.parametrize(("body", "message"), HOSTILE.values(), ids=HOSTILE)
def test_what_a_file_does_wrong_is_one_line(run: Run, body: str, message: str) -> None:
    with pytest.raises(CallFailedError) as error:
        run(BODY + body)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)
    ending = ending_of(error.value)
    assert ending.outcome is Outcome.CRASHED
    assert ending.outcome.is_recipes_fault and not ending.outcome.is_workers_trouble


def test_a_network_that_answers_in_another_shape_is_told(run: Run) -> None:
    flat = HEAD + (
        "class Flat(torch.nn.Module):\n"
        "    def forward(self, x, t, c):\n"
        "        return x.flatten(1)\n"
        "def finetune_model(net, data, lr=0.5):\n"
        "    return Flat()\n"
    )
    with pytest.raises(CallFailedError, match=r"answers a tensor of shape \(\d+, 784\) to images"):
        run(flat)
    whole = run(flat.replace("x.flatten(1)", "x"))
    assert whole.evaluation.loss > 0, "a network without parameters is on every device"


def test_weights_that_are_not_numbers_are_not_finite(run: Run) -> None:
    with pytest.raises(NotFiniteError, match=r"^r/0/3: the loss on unseen drawings is nan"):
        run(BODY + CLASS + "net.conv_out.weight.data.fill_(float('nan'))\n    return net")


def test_what_was_printed_is_kept_with_what_went_wrong(run: Run) -> None:
    body = "print('first'); print('last', file=sys.stderr); raise KeyError('x')"
    with pytest.raises(CallFailedError) as error:
        run(BODY + body)
    told = ending_of(error.value).traceback or ""
    assert 'File "' in told and "mine.py" in told and body in told, "the person's own line"
    assert told.endswith("What mine.py printed last:\nfirst\nlast")
    assert "child.py" not in told


def test_an_endless_loop_is_ended_with_all_that_it_started(run: Run, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    loop = (
        f"out = open({str(pids)!r}, 'w')\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"  # out of its process group
        "        if os.fork() == 0:\n"
        "            out.write(f'{os.getpid()} '); out.flush(); time.sleep(600)\n"
        "        os._exit(0)\n"
        "    out.write(f'{os.getpid()} '); out.flush()\n"
        "    print('looping')\n"
        "    while True: pass"
    )
    with pytest.raises(OutOfTimeError, match=r"^stopped on r/0/3 after ") as error:
        run(BODY + loop, limit_s=0.5)
    assert (ending_of(error.value).traceback or "").endswith("looping")
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    deadline = time.monotonic() + 10
    while any(map(psutil.pid_exists, started)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(psutil.pid_exists, started))


def test_a_fork_that_goes_on_returns_nothing(run: Run) -> None:
    text = BODY + CLASS + "os.fork()\n    return net"
    assert run(text).evaluation.loss > 0
    with pytest.raises(CallFailedError, match="line 4: ValueError: boom"):
        run(HEAD + "os.fork()\n" + BODY.removeprefix(HEAD) + "raise ValueError('boom')")


def test_memory_over_the_limit_ends_the_call(run: Run) -> None:
    hold = "held = [torch.ones(1 << 24) for _ in range(40)]; time.sleep(60)"  # of 64 MiB each
    started = time.monotonic()
    with pytest.raises(CallFailedError, match=r"mine.py used \d.\d GiB of memory.* allows 1$"):
        run(BODY + hold, memory_gb=1.0)
    assert time.monotonic() - started < 30


def test_a_file_that_loops_as_it_is_loaded_is_ended(run: Run) -> None:
    with pytest.raises(OutOfTimeError):
        run(HEAD + "while True: pass\n" + GOOD.removeprefix(HEAD), limit_s=0.5)


REPORTING = HEAD + (
    "def finetune_model(net, data, n_steps=40, *, report):"
    + CLASS
    + "for step in range(1, n_steps + 1):\n"
    "        report(step, torch.tensor(1.0 / step))\n"
    "    return net\n"
)


@pytest.mark.parametrize("steps", [None, "n_steps"])
def test_reported_losses_are_the_learning_curve(run: Run, steps: str | None) -> None:
    seen: list[Progress] = []
    measured = run(REPORTING, seen=seen, steps=steps)
    assert measured.steps == 40
    told = [p for p in seen if p.loss is not None]
    assert [p.step for p in told] == list(range(1, 41))
    assert [p.share for p in told] == pytest.approx([step / 40 for step in range(1, 41)])
    assert [p.loss for p in told] == pytest.approx([1 / step for step in range(1, 41)])


def test_a_call_can_be_asked_for_a_number_of_steps(instance: RuneInstance) -> None:
    method = FileMethod(Path("mine.py"), REPORTING, steps="n_steps")
    values = method.complete({})
    (called,) = method.call(values, [instance], lambda *_: None, steps=[7])
    assert (called.steps, called.steps_wanted) == (7, 7)
    assert values["n_steps"] == 40


@pytest.mark.parametrize(("speed", "made"), [(0.1, 4), (0.001, 1), (1.0, 40), (None, 40)])
def test_a_speed_is_a_share_of_the_files_own_steps(
    instance: RuneInstance, speed: float | None, made: int
) -> None:
    method = FileMethod(Path("mine.py"), REPORTING, steps="n_steps")
    (called,) = method.call({}, [replace(instance, speed=speed)], lambda *_: None)
    assert (called.steps, called.steps_wanted) == (made, made)


def test_a_reported_loss_that_is_no_number_ends_the_call(run: Run) -> None:
    with pytest.raises(NotFiniteError, match="the reported loss is nan at step 1"):
        run(REPORTING.replace("1.0 / step", "float('nan')"))


def test_a_file_imports_what_lies_beside_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("import torch\nRate = 2\n")
    text = HEAD + "from helper import Rate\ndef finetune_model(net, data, lr=0.5):" + CLASS
    assert run(text + "return net", path=tmp_path / "mine.py").evaluation.loss > 0


def test_a_file_that_does_not_load_is_told_before_any_trial(tmp_path: Path) -> None:
    method = FileMethod(tmp_path / "mine.py", "import nowhere\n" + GOOD)
    threads = torch.get_num_threads()
    with pytest.raises(UserError) as error:
        method.prepare("cpu", threads)
    assert str(error.value) == (
        f"{tmp_path}/mine.py can't be loaded: mine.py line 1: ModuleNotFoundError: "
        "No module named 'nowhere'"
    )
    FileMethod(tmp_path / "mine.py", GOOD).prepare("cpu", threads)


def test_how_fast_the_machine_is_is_measured_once_and_only_when_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[float] = []

    def measuring() -> float:
        measured.append(5.0)
        return 5.0

    monkeypatch.setattr(speed, "steps_per_second", measuring)
    method = FileMethod(Path("mine.py"), GOOD)
    assert set(method.machine()) == {"device", "units", "threads", "torch"}
    assert measured == []
    assert (method.speed(), method.speed()) == (5.0, 5.0)
    assert measured == [5.0]


def test_a_stop_ends_the_call(instance: RuneInstance) -> None:
    method = FileMethod(Path("mine.py"), BODY + "time.sleep(600)")

    def on_step(_: int, progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.call({"lr": 0.5}, [instance], on_step)


def test_a_server_that_was_killed_is_started_again(run: Run) -> None:
    server = runner.start_server()
    os.kill(server._process.pid, signal.SIGKILL)
    server._process.wait()
    assert run(BODY + CLASS + "return net").evaluation.loss > 0
