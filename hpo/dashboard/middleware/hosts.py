"""Answer only to the names that this server goes by, and take changes only from its own pages.

A foreign page can let its own name point at this machine (DNS rebinding) and would then be of one
origin with the dashboard; it can't forge the Host header.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from .responses import is_reading, reply

LOOPBACK = ("localhost", "127.0.0.1", "::1")

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@?#\s,]+)(:[0-9]{1,5})?")


def host_name(header: str) -> str | None:
    """The name in a Host header, in lower case, without the port; None if it is malformed."""
    match = _HOST.fullmatch(header.lower())
    return match[1].strip("[]").rstrip(".") if match else None


def known_hosts(
    app: WSGIApplication, names: Iterable[str], any_address: bool = False
) -> WSGIApplication:
    """``app`` for requests to `LOOPBACK` and ``names``; no port is looked at, for tunnels' sake.

    Args:
        any_address: IP addresses are names, too: nobody else's page can be at one of ours.
    """
    known = {*LOOPBACK, *(name.lower().strip("[]").rstrip(".") for name in names)}

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        header = environ.get("HTTP_HOST", "")
        name = host_name(header)
        if name is None:
            text = "The Host header is missing or malformed."
            return reply(environ, start_response, HTTPStatus.BAD_REQUEST, text)
        if name not in known and not (any_address and _is_address(name)):
            text = (
                f"This dashboard does not go by the name {name}. "
                f"If it should, start it with --allowed-host {name}"
            )
            return reply(environ, start_response, HTTPStatus.FORBIDDEN, text)
        if not is_reading(environ) and not _is_own(environ, header):
            text = "Changes are taken from the dashboard's own pages only."
            return reply(environ, start_response, HTTPStatus.FORBIDDEN, text)
        return app(environ, start_response)

    return guarded


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_own(environ: WSGIEnvironment, host: str) -> bool:
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    if origin is None:  # no browser
        return True
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False
