"""Connections of somebody who says nothing are in nobody's way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from hpo.storage.open import open_storage
from tests.cheap import CHEAP_TOML

REPO = Path(__file__).parents[3]
MANY = 200  # waitress itself takes 100 at once


def test_many_idle_and_slow_connections_do_not_block_the_dashboard(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        f'name = "s"\nstorage = "sqlite:///s.db"\n{CHEAP_TOML}[instances]\nsource = "drawn"\n'
        '[space.lr]\ntype = "float"\nlow = 0.1\nhigh = 0.2\n'
    )
    open_storage(f"sqlite:///{tmp_path}/s.db").create_study("s", {}, [])
    command = [sys.executable, "-m", "hpo.dashboard", "--study", "s.toml", "--port", "0"]
    environment = dict(os.environ, PYTHONPATH=str(REPO), RUNES_ARTIFACTS="none")
    with ExitStack() as opened:
        server = opened.enter_context(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
            )
        )
        opened.callback(server.kill)
        assert server.stdout is not None
        address = next(line for line in server.stdout if line.startswith("http")).strip()
        to = urlsplit(address)
        assert to.hostname is not None and to.port is not None
        for i in range(MANY):
            connection = opened.enter_context(socket.create_connection((to.hostname, to.port)))
            if i % 2:
                connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        with urllib.request.urlopen(f"{address}api/studies/1", timeout=15) as answer:
            assert answer.status == 200
