"""Watches the process of one call: its memory, its end, and processes that it leaves behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from .channel import Channel, ChannelClosedError
from .child import run_child

_POLL_S = 0.1
_TAIL_BYTES = 8192  # the end of the process's output that is kept
_GIB = 1 << 30
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # options of Linux's prctl


def supervise(data: socket.socket, control: socket.socket) -> NoReturn:
    """Run a call in a child process until it ends or the worker ends it.

    The first message on ``control`` sets ``memory_gb``.  ``{"ask": "output"}`` is answered with the
    end of the output.  When the child has ended, ``{"ended": STATUS, ...}`` is sent.  The worker
    ends the child by closing ``control``.

    Args:
        data: the child's end of its channel to the worker.
        control: this process's end of its channel to the worker.
    """
    channel = Channel(control)
    directory = tempfile.mkdtemp(prefix="hpo-call-")
    try:
        _prctl(_SET_CHILD_SUBREAPER, 1)  # for processes that the file leaves behind
        _watch(data, channel, directory)
    except ChannelClosedError:
        pass
    finally:
        _kill_all()
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(0)


def _watch(data: socket.socket, channel: Channel, directory: str) -> None:
    received = channel.receive()
    assert received is not None
    limit_gb: float = received[0]["memory_gb"]
    printed, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _become_child(write_end, directory)
        run_child(Channel(data))
    data.close()
    os.close(write_end)
    tail, is_open, over_gb = b"", True, None
    while True:
        sources = [channel.fileno(), *([printed] if is_open else [])]
        ready = select.select(sources, [], [], _POLL_S)[0]
        if printed in ready:
            part = os.read(printed, 1 << 16)
            tail, is_open = (tail + part)[-_TAIL_BYTES:], bool(part)
        if channel.fileno() in ready:
            asked = channel.receive(0.0)
            if asked is not None:
                channel.send({"output": readable(tail)})
        used_gb = memory_gb(os.getpid())
        if used_gb > limit_gb:
            over_gb = used_gb
            _kill_all(but=child)
            os.kill(child, signal.SIGKILL)
        ended, status = os.waitpid(child, 0 if over_gb else os.WNOHANG)
        if ended:
            _kill_all()
            tail += _drained(printed)
            code = os.waitstatus_to_exitcode(status)
            channel.send({"ended": code, "over_gb": over_gb, "output": readable(tail)})
            return


def _become_child(write_end: int, directory: str) -> None:
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(write_end, 1)
    os.dup2(write_end, 2)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        stream = os.fdopen(number, "w" if number else "r", 1, errors="replace", closefd=False)
        setattr(sys, name, stream)
    with contextlib.suppress(OSError):  # if the machine runs out of memory, it is killed first
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.chdir(directory)  # its own, because two workers may run the same file


def _drained(printed: int) -> bytes:
    """Read the rest of the pipe, once all processes that write to it are gone."""
    data = b""
    deadline = time.monotonic() + 1.0
    while select.select([printed], [], [], 0)[0] and time.monotonic() < deadline:
        part = os.read(printed, 1 << 16)
        if not part:
            break
        data = (data + part)[-_TAIL_BYTES:]
    return data


def readable(printed: bytes) -> str:
    """Printed text without the lines that progress bars have overwritten."""
    text = printed.decode("utf-8", "replace")
    lines = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n"))
    return "\n".join(filter(None, lines))


def memory_gb(root: int) -> float:
    """Memory of the processes under ``root`` in GiB; shared pages count once.

    It is 0 on systems other than Linux, which do not tell.
    """
    processes = descendants(root)
    resident = sum(map(_resident_bytes, processes))
    # Resident pages are quick to count, but shared ones count in each process.
    if resident < _GIB or len(processes) < 2:
        return resident / _GIB
    return sum(map(_proportional_bytes, processes)) / _GIB


def _resident_bytes(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * _PAGE


def _proportional_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _resident_bytes(pid)


def descendants(root: int) -> list[int]:
    """Process ids of all descendants of ``root``."""
    found, look = [], [root]
    while look:
        for tasks in Path(f"/proc/{look.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = [int(pid) for pid in tasks.read_text().split()]
                found += children
                look += children
    return found


def _kill_all(but: int | None = None) -> None:
    """Kill all descendants, also those that are adopted meanwhile."""
    for _ in range(100):
        processes = [pid for pid in descendants(os.getpid()) if pid != but]
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if but is not None:  # it is waited for elsewhere
            return
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
