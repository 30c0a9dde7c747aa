"""The dashboard's HTTP server, with limits on the number and the life of connections.

Anybody can open connections, even without the token. So idle connections, and requests that arrive
too slowly, are closed.
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
_IDLE_S = 20.0  # an idle connection is closed after so long
_SLOWEST = 16_000  # least bytes a second of a request


class RequestChannel(HTTPChannel):  # type: ignore[misc]
    """A connection that is closed if its request arrives too slowly.

    For waitress every byte counts as activity, so a client that sends one byte now and then can
    hold its connection for ever. Here the last activity of an incomplete request is the time when
    its bytes would have arrived at a rate of `_SLOWEST`.
    """

    _began, _received = 0.0, 0

    def received(self, data: bytes) -> bool:
        """Receive data, as in waitress."""
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
    """Make a waitress server for ``app``; its method ``run`` serves until Ctrl-C.

    Args:
        largest_body: largest body of a request, in bytes.
        proxy: waitress's options about a proxy's headers.
        idle_s: seconds after which an idle connection, or one with a late request, is closed.
    """
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # else it logs each wait
    server = waitress.create_server(
        app,
        sockets=[listener],
        threads=_THREADS,
        ident=None,
        connection_limit=_most_connections(),
        channel_timeout=idle_s,
        cleanup_interval=idle_s / 4,
        asyncore_use_poll=True,  # select can't handle descriptors above 1023
        max_request_body_size=largest_body,
        **proxy,
    )
    server.channel_class = RequestChannel
    return server


def _most_connections() -> int:
    """Most open connections, by the limit of open files."""
    handles = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(100, min(_CONNECTIONS, handles - _OWN_HANDLES))
