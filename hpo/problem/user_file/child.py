"""The process of a user's file: it makes one call, then evaluates the returned network.

It is forked by `hpo.problem.user_file.supervisor` and ends with the call.  The file gets what the
course gives: a network of the course's class, a dataset of pairs, seeded random numbers.  The
drawings that the network is scored on arrive only after the call, as questions.
"""

from __future__ import annotations

import contextlib
import copy
import linecache
import math
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from finetune.challenge import notebook_globals, set_seed
from finetune.data.runes import DrawingDataset
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.scoring.cost import measure_cost

from .channel import Channel, ChannelClosedError
from .parameters import FUNCTION, REPORT

_MODULE = "finetune_file"  # module name of the file while it runs
_REPORT_S = 0.2  # least time between two messages with reported losses
_MOST_TRACEBACK = 3000  # characters


class _CallError(Exception):
    """The file failed.  The message is one line."""


def run_child(channel: Channel) -> None:
    """Make the call of the first message, then answer questions; never returns."""
    me = os.getpid()
    try:
        _run(channel, me)
    except ChannelClosedError:
        pass  # the worker is done, or gone
    except BaseException as error:  # anything that a file raises, also SystemExit
        if os.getpid() == me:
            with contextlib.suppress(ChannelClosedError):
                channel.send(_failure(error))
    finally:
        # Also in a process that the file has forked, whose result nobody waits for.
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(0)


def _run(channel: Channel, me: int) -> None:
    received = channel.receive()
    assert received is not None
    request, tensors = received
    path = Path(request["path"])
    torch.set_num_threads(request["threads"])
    set_seed(request["seed"])
    module = _load(request["text"], path)
    if os.getpid() != me:
        return
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        raise _CallError(f"{path.name} defines no {FUNCTION} that can be called")
    channel.send({"loaded": True})
    if request["load_only"]:
        return
    drawings, state = tensors[0], dict(zip(request["state"], tensors[1:], strict=True))
    given, data = _network(state), DrawingDataset(drawings)
    steps, reports = _count_steps(), _Reports(channel)
    extra = {REPORT: reports} if request["reports"] else {}
    set_seed(request["seed"])
    start = reports.start = time.perf_counter()
    model = function(given, data, **extra)
    seconds = time.perf_counter() - start
    if os.getpid() != me:
        return
    reports.send()
    if not isinstance(model, nn.Module):
        raise _CallError(
            f"{FUNCTION} returned {_kind(model)}; return the network, a torch.nn.Module"
        )
    channel.send({"called": seconds, "steps": steps()})
    _answer(channel, model, state)


def _load(text: str, path: Path) -> ModuleType:
    """Run a file's text as a module, as an import would."""
    sys.path.insert(0, str(path.parent))
    module = ModuleType(_MODULE)
    vars(module).update(notebook_globals(), __file__=str(path))
    sys.modules[_MODULE] = module  # dataclasses and pickle look it up there
    lines = text.splitlines(keepends=True)
    linecache.cache[str(path)] = (len(text), None, lines, str(path))  # for tracebacks
    exec(compile(text.removeprefix("\ufeff"), str(path), "exec"), module.__dict__)
    return module


def _network(state: dict[str, Tensor]) -> nn.Module:
    model = ConditionalDiffusionUNet()
    model.load_state_dict(state)
    return model.eval()


class _Reports:
    """The callable ``report(step, loss)``; it sends reported losses a few times a second."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._told: list[tuple[int, float, float]] = []
        self._sent_at = 0.0
        self.start = 0.0

    def __call__(self, step: int, loss: Any) -> None:
        value = float(loss)
        if not math.isfinite(value):
            self._channel.send({"not_finite": f"the reported loss is {value} at step {int(step)}"})
            raise SystemExit
        now = time.perf_counter()
        self._told.append((int(step), value, now - self.start))
        if now - self._sent_at > _REPORT_S:
            self.send()

    def send(self) -> None:
        if self._told:
            self._channel.send({"reported": self._told})
            self._told, self._sent_at = [], time.perf_counter()


def _count_steps() -> Callable[[], int]:
    """Count optimizer steps from now on; returns a function that gives the busiest's count."""
    steps: Counter[int] = Counter()

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        steps[id(optimizer)] += 1

    register_optimizer_step_post_hook(note)
    return lambda: max(steps.values(), default=0)


def _answer(channel: Channel, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Answer questions to the returned network until there are no more."""
    # Restore the settings of the grader's process, which the file may have changed.
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # the number of threads may change a sum's last bits
    try:
        model = model.to(device).eval()
    except Exception as error:
        raise _unscored(error) from error
    while True:
        received = channel.receive()
        assert received is not None
        question, tensors = received
        if question["ask"] == "cost":
            channel.send({"cost": _cost(model, state, tensors[0], question, device)})
            continue
        x_t, t, c = (tensor.to(device) for tensor in tensors)
        try:
            with torch.inference_mode():
                answer = model(x_t, t, c)
        except Exception as error:
            raise _unscored(error) from error
        if not isinstance(answer, Tensor) or answer.shape != x_t.shape:
            raise _CallError(
                f"the returned network answers {_kind(answer)} to images {tuple(x_t.shape)}; "
                "it must answer a velocity of their shape"
            )
        channel.send({"answer": True}, [answer.float()])


def _cost(
    model: nn.Module,
    state: dict[str, Tensor],
    drawings: Tensor,
    question: dict[str, Any],
    device: torch.device,
) -> float:
    """CPU time of an answer, relative to the plain network's."""
    plain = _network(copy.deepcopy(state)).to(device)
    return measure_cost(
        model, plain, drawings, question["label"], budget_s=question["budget_s"]
    ).ratio


def _unscored(error: Exception) -> _CallError:
    return _CallError(f"the returned network can't be scored: {_describe(error)}")


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _describe(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called sys.exit({'' if error.code is None else repr(error.code)})"
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _failure(error: BaseException) -> dict[str, Any]:
    """The message for an error in a call: one line, and the traceback in the user's own code."""
    if isinstance(error, _CallError):
        cause = error.__cause__
        trace = "".join(traceback.format_exception(cause)) if cause else ""
        return {"failed": str(error), "traceback": trace[-_MOST_TRACEBACK:]}
    file = getattr(sys.modules.get(_MODULE), "__file__", "")
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    where = f"{Path(file).name} line {own[-1].lineno}: " if own and file else ""
    if isinstance(error, SyntaxError) and error.filename == file:
        where = f"{Path(file).name} line {error.lineno}: "
    frames = list(traceback.walk_tb(error.__traceback__))
    first = next((i for i, (f, _) in enumerate(frames) if f.f_code.co_filename == file), 0)
    tb = error.__traceback__
    for _ in range(first):
        tb = tb.tb_next if tb else None
    trace = "".join(traceback.format_exception(type(error), error, tb))
    return {"failed": where + _describe(error), "traceback": trace[-_MOST_TRACEBACK:]}
