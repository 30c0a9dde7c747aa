"""A signal is never lost, wherever it comes in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[3]


def test_a_signal_while_an_object_is_cleaned_up_is_raised_afterwards() -> None:
    script = """
import os, signal
from hpo.process.signals import StopError, acknowledge_stop, raise_if_stopped, raise_on_signals

class Cleaned:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(1000))  # Python runs the handler here, and drops what it raises

raise_on_signals()
Cleaned()
print("dropped")
try:
    raise_if_stopped()
except StopError as stop:
    print(stop, stop.exit_code)
acknowledge_stop()
raise_if_stopped()
print("once")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(REPO)),
    )
    assert done.stdout.split("\n")[:3] == ["dropped", "SIGTERM 0", "once"]
    assert done.stderr == ""
