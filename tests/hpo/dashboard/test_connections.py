"""Connections of somebody who says nothing, or hardly anything, are in nobody's way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from hpo.dashboard.connections import make_server
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


IDLE_S = 1.0
LARGEST = 2**20


def count(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An application that answers how many bytes it was sent."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(len(environ["wsgi.input"].read())).encode()]


@pytest.fixture
def port() -> Iterator[int]:
    """Where a server listens that closes connections after a second."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(count, listener, LARGEST, {}, IDLE_S)
        thread = threading.Thread(target=server.run)
        thread.start()
        yield int(listener.getsockname()[1])
        server.close()
        server.asyncore.close_all(server._map)
        thread.join()


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:  # reset
        return True


@pytest.mark.parametrize(
    "start",
    [b"", b"GET / HTTP/1.1\r\nX-Slow: ", b"POST / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n"],
    ids=["line", "headers", "body"],
)
def test_a_request_that_drips_is_closed(port: int, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(start)
        for _ in range(300):  # thirty seconds; it takes two
            try:
                connection.sendall(b"x")
            except OSError:
                return
            if is_closed(connection):
                return
            time.sleep(0.1)
    pytest.fail("the connection is still open")


def test_a_request_that_takes_longer_at_a_fair_speed_is_answered(port: int) -> None:
    piece, n = b"x" * 50_000, 6
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        head = f"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(piece) * n}\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(n):
            time.sleep(IDLE_S / 2)
            connection.sendall(piece)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(str(len(piece) * n).encode())
