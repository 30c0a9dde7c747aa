"""The dashboard's HTTP server: how many connections it holds, and for how long.

Whoever connects takes a place, with the token or without. So connections that say nothing, and
requests that arrive too slowly, are closed.
"""

from __future__ import annotations

import logging
import resource
import socket
import time
from collections.abc import Mapping
from typing import Any
from wsgiref.types import WSGIApplication

import waitress
from waitress.channel import HTTPChannel

_THREADS = 4
_CONNECTIONS, _OWN_HANDLES = 4000, 100
_IDLE_S = 20.0  # after which a connection that says nothing is closed
_SLOWEST = 16_000  # bytes a second, in which a request has to arrive


class RequestChannel(HTTPChannel):  # type: ignore[misc]
    """A connection that a request keeps open only as long as it arrives fast enough.

    Waitress takes each byte for a sign of life, so that a client which sends one now and then
    holds its connection for as long as it likes. Here a request that is not complete has sent its
    last sign of life when it would have come this far at `_SLOWEST`.
    """

    _began, _received = 0.0, 0

    def received(self, data: bytes) -> bool:
        """Take what arrived, as the class above does."""
        before = self.request
        taken = bool(super().received(data))
        if self.request is not None:
            if self.request is not before:
                self._began, self._received = time.time(), 0
            self._received += len(data)
            self.last_activity = min(time.time(), self._began + self._received / _SLOWEST)
        return taken


def make_server(
    app: WSGIApplication,
    listener: socket.socket,
    largest_body: int,
    proxy: Mapping[str, object],
    idle_s: float = _IDLE_S,
) -> Any:
    """Waitress for ``app``; its method ``run`` serves until Ctrl-C.

    Args:
        largest_body: of a request, in bytes.
        proxy: waitress's options about what a proxy says.
        idle_s: after which an idle connection, or a request that is late, is closed.
    """
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of each wait
    server = waitress.create_server(
        app,
        sockets=[listener],
        threads=_THREADS,
        ident=None,
        connection_limit=_most_connections(),
        channel_timeout=idle_s,
        cleanup_interval=idle_s / 4,
        asyncore_use_poll=True,  # select knows no handle above 1023
        max_request_body_size=largest_body,
        **proxy,
    )
    server.channel_class = RequestChannel
    return server


def _most_connections() -> int:
    """Connections at once: as many as the limit of open files leaves, within reason."""
    handles = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(100, min(_CONNECTIONS, handles - _OWN_HANDLES))
