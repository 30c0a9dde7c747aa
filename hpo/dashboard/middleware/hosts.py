"""Answer only to this server's own names, and accept changes only from its own pages.

A foreign page can let its own name point at this machine (DNS rebinding), and would then have the
same origin as the dashboard.  But it can't forge the Host header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from wsgiref.types import WSGIApplication

from werkzeug.exceptions import BadRequest, Forbidden
from werkzeug.sansio.utils import host_is_trusted

from ...errors import UserError
from ..options import is_address
from .responses import Request, application

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def host_name(header: str) -> str | None:
    """The name in a Host header, in lower case, without the port; None if it is malformed."""
    if not host_is_trusted(header, None):  # checks only the form
        return None
    # werkzeug could compare with a list, too, but not IPv6 addresses.
    return _plain(re.sub(r":\d+$", "", header))


def check_names(names: Iterable[str]) -> None:
    """Raise UserError unless all ``names``, from ``--allowed-host``, are host names."""
    for name in names:
        if host_name(name) is None and not is_address(name):
            raise UserError(f"--allowed-host is {name!r}; write a name such as lab.example")


def known_hosts(
    app: WSGIApplication, names: Iterable[str], any_address: bool = False
) -> WSGIApplication:
    """Limit ``app`` to requests to `LOOPBACK` and ``names``; the port is ignored, for tunnels.

    Args:
        any_address: whether to accept all IP addresses, too. That is safe, because no foreign page
            can have one of ours.
    """
    known = {*LOOPBACK, *map(_plain, names)}

    def pass_known(request: Request) -> WSGIApplication:
        header = request.headers.get("Host", "")
        name = host_name(header)
        if name is None:
            raise BadRequest("The Host header is missing or malformed.")
        if name not in known and not (any_address and is_address(name)):
            raise Forbidden(
                f"This dashboard does not go by the name {name}. "
                f"If it should, start it with --allowed-host {name}"
            )
        if not request.is_reading and not _is_own(request, header):
            raise Forbidden("Changes are taken from the dashboard's own pages only.")
        return app

    return application(pass_known)


def _plain(name: str) -> str:
    return name.lower().strip("[]").rstrip(".")


def _is_own(request: Request, host: str) -> bool:
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    if request.origin is None:  # not from a browser
        return True
    return request.origin.partition("://")[2].lower() == host.lower()
