"""A worker's side of the calls of a user's file: start them, follow them, end them."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..base import CallFailedError, NotFiniteError
from .channel import Channel, ChannelClosedError

_START_S = 120.0  # timeout for the server to start: importing torch is slow on a busy machine
_POLL_S = 0.2  # interval of checks whether to go on
_ANSWER_S = 300.0  # timeout for one evaluation of the returned network
_SEND_S = 60.0  # timeout for the process to accept a question
_GONE_S = 10.0  # timeout for the supervisor to say how its process ended
_ROOT = Path(__file__).parents[3]
_SPINS = "1000"  # threads spin for some microseconds before they sleep
_PRIVATE = "RUNES_"  # variables that the file must not see: a database's URL may have a password


@dataclass(frozen=True)
class Request:
    """A call of a file.

    Args:
        text: text of the file, with the values of the call.
        path: path of the file, for messages and for imports of files beside it.
        drawings: drawings to learn from, (n, 1, 28, 28).
        state: state dict of the pretrained network.
        reports: whether `finetune_model` takes ``report``.
    """

    text: str
    path: Path
    threads: int
    memory_gb: float
    seed: int = 0
    reports: bool = False
    drawings: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """A call's progress, as far as it is known; see `hpo.problem.base.Progress`."""

    step: int
    share: float
    loss: float | None
    elapsed_s: float


class Server:
    """The process that calls are forked from; it ends with this one."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_PRIVATE)}
        path = [str(_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment |= {
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONHASHSEED": "0",  # the same order of sets in every call
            "OPENBLAS_NUM_THREADS": "1",  # its threads would start before the fork
            "MPLBACKEND": "Agg",
        }
        # Torch's threads wait for each other after each operation.  By default they spin, which
        # makes a step many times slower if another program needs their core.
        environment.setdefault("GOMP_SPINCOUNT", _SPINS)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hpo.problem.user_file.server", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C goes to the worker alone
        )
        theirs.close()
        self._socket, self._is_ready = ours, False
        self._lock = threading.Lock()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def fork(self) -> tuple[Channel, Channel]:
        """Fork a supervisor; returns channels to its child and to itself.

        Raises:
            ChannelClosedError: the server is gone.
        """
        with self._lock:
            self._wait()
            data, child = socket.socketpair()
            control, supervisor = socket.socketpair()
            try:
                socket.send_fds(self._socket, [b"x"], [child.fileno(), supervisor.fileno()])
            except OSError as error:
                raise ChannelClosedError from error
            finally:
                child.close()
                supervisor.close()
            return Channel(data, _SEND_S), Channel(control, _SEND_S)

    def close(self) -> None:
        self._socket.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _wait(self) -> None:
        """Wait until the server can fork."""
        if self._is_ready:
            return
        self._socket.settimeout(_START_S)
        try:
            self._is_ready = self._socket.recv(16) == b"ready"
        except OSError as error:
            raise ChannelClosedError from error
        if not self._is_ready:
            raise ChannelClosedError


_server: Server | None = None  # of this process


def start_server() -> Server:
    """This process's server; it is started if there is none, or if it is gone."""
    global _server
    if _server is None or not _server.is_alive:
        if _server is None:
            atexit.register(stop_server)
        else:
            _server.close()
        _server = Server()
    return _server


def stop_server() -> None:
    """End this process's server, if there is one."""
    global _server
    if _server is not None:
        _server.close()
        _server = None


class Call:
    """A call in a process of its own.  Whoever starts it has to close it."""

    def __init__(self, request: Request, load_only: bool = False) -> None:
        self.output = ""
        self._name = request.path.name
        self._memory_gb = request.memory_gb
        try:
            self._data, self._control = start_server().fork()
            self._control.send({"memory_gb": request.memory_gb})
            tensors = [] if request.drawings is None else [request.drawings]
            asked = {
                "text": request.text,
                "path": str(request.path.absolute()),
                "threads": request.threads,
                "seed": request.seed,
                "reports": request.reports,
                "state": list(request.state),
                "load_only": load_only,
            }
            self._data.send(asked, [*tensors, *request.state.values()])
        except ChannelClosedError as error:
            raise RuntimeError("the server of calls is gone; start the worker again") from error

    def close(self) -> None:
        """End the process and all processes that it has started."""
        self._control.close()
        self._data.close()

    def load(self, limit_s: float) -> None:
        """Wait until the file is loaded.

        Raises:
            CallFailedError: the file can't be loaded.
        """
        message = self._receive(limit_s)
        if message is None:
            self._fail(f"{self._name} was not loaded within {limit_s:g} s")

    def follow(self, on_moment: Callable[[Moment], None], steps: int | None) -> tuple[int, float]:
        """Wait for the end of the call; returns its steps and its seconds.

        Args:
            on_moment: called a few times a second with the call's progress.  Reported losses are
                passed on at once if ``steps`` is known, and else at the end.
            steps: number of steps of the call; None: unknown.

        Raises:
            CallFailedError, NotFiniteError: the call failed.
        """
        start = time.monotonic()
        told: list[Moment] = []
        step = 0
        while True:
            message = self._receive(_POLL_S)
            elapsed_s = time.monotonic() - start
            if message is None:
                on_moment(Moment(step, _share(step, steps), None, elapsed_s))
            elif "loaded" in message:
                start = time.monotonic()
            elif "reported" in message:
                for step, loss, at_s in message["reported"]:
                    moment = Moment(step, _share(step, steps), loss, at_s)
                    if steps is None:
                        told.append(moment)
                    else:
                        on_moment(moment)
                on_moment(Moment(step, _share(step, steps), None, elapsed_s))
            elif "not_finite" in message:
                raise self._noted(NotFiniteError(message["not_finite"]))
            elif "called" in message:
                last = max((m.step for m in told), default=0)
                for moment in told:
                    share = _share(moment.step, last)
                    on_moment(Moment(moment.step, share, moment.loss, moment.elapsed_s))
                self.output = self._ask_output()
                return message["steps"] or last or step, message["called"]

    def ask(
        self, question: dict[str, Any], tensors: list[Tensor]
    ) -> tuple[dict[str, Any], list[Tensor]]:
        """Ask the returned network a question.

        Raises:
            CallFailedError: there is no answer.
        """
        with suppress(ChannelClosedError):  # after its end the last message can still be read
            self._data.send(question, tensors)
        received = self._receive_whole(_ANSWER_S)
        if received is None:
            self._fail(f"the returned network did not answer within {_ANSWER_S:g} s")
        return received

    def note_output(self, error: BaseException) -> None:
        """Add the end of the file's output to an error that ended the call."""
        try:
            self.output = self.output or self._ask_output()
        except CallFailedError:
            return
        if self.output:
            error.add_note(f"What {self._name} printed last:\n{self.output}")

    def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        received = self._receive_whole(timeout_s)
        return None if received is None else received[0]

    def _receive_whole(self, timeout_s: float) -> tuple[dict[str, Any], list[Tensor]] | None:
        try:
            received = self._data.receive(timeout_s)
        except ChannelClosedError:
            self._fail_as_ended()
        if received is not None and "failed" in received[0]:
            self._fail(received[0]["failed"], received[0]["traceback"])
        return received

    def _fail(self, reason: str, trace: str = "") -> NoReturn:
        error = CallFailedError(reason)
        if trace:
            error.add_note(trace.rstrip())
        raise self._noted(error)

    def _noted(self, error: Exception) -> Exception:
        self.note_output(error)
        return error

    def _fail_as_ended(self) -> NoReturn:
        """Raise an error for a process that is gone, with what its supervisor knows of its end."""
        ended = self._ended()
        self.output = ended.get("output", "")
        status, over_gb = ended.get("ended"), ended.get("over_gb")
        if over_gb is not None:
            reason = (
                f"{self._name} used {over_gb:.1f} GiB of memory and was ended; "
                f"memory_gb allows {self._memory_gb:.3g}"
            )
        elif status is None:
            reason = f"the process of {self._name} is gone"
        elif status < 0:
            reason = f"{self._name} was ended by {_signal_name(-status)}"
        else:
            reason = f"{self._name} ended its process (exit code {status}) before it returned"
        self._fail(reason)

    def _ended(self) -> dict[str, Any]:
        try:
            while (received := self._control.receive(_GONE_S)) is not None:
                if "ended" in received[0]:
                    return received[0]
        except ChannelClosedError:
            pass
        return {}

    def _ask_output(self) -> str:
        with suppress(ChannelClosedError):  # at its end the process has sent the output
            self._control.send({"ask": "output"})
        try:
            received = self._control.receive(_GONE_S)
        except ChannelClosedError:
            return ""
        return "" if received is None else str(received[0]["output"])


class RemoteNetwork(nn.Module):
    """The network that a call returned; it stays in the call's process and is evaluated there.

    Args:
        call: closed when this object is no longer used.
    """

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))  # its device tells where inputs are
        self._call = call

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        _, (answer,) = self._call.ask({"ask": "answer"}, [x_t, t, c])
        return answer.to(x_t.device)

    def measure_cost(self, drawings: Tensor, label: int, budget_s: float) -> float:
        """CPU time of an answer, relative to the plain network's, measured in its process."""
        question = {"ask": "cost", "label": label, "budget_s": budget_s}
        return float(self._call.ask(question, [drawings])[0]["cost"])

    def close(self) -> None:
        """End the network's process."""
        self._call.close()

    def __del__(self) -> None:
        self._call.close()


def _share(step: int, steps: int | None) -> float:
    return min(1.0, step / steps) if steps else 0.0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
