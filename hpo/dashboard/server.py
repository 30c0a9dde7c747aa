"""The dashboard's server: its address, its token, and its exposure."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from wsgiref.types import WSGIApplication

from ..artifacts.store import open_store
from ..errors import UserError
from .options import TOKEN_VARIABLE, DashboardOptions

_LARGEST_BODY = 128 * 2**20  # for uploads of artifacts
_LARGEST_FORM = 2**16


@dataclass(frozen=True)
class Address:
    """The address that the server listens at."""

    host: str  # as the user wrote it
    number: str
    port: int
    family: socket.AddressFamily

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(self.number).is_loopback

    @property
    def is_any(self) -> bool:
        """Whether it stands for all of the machine's addresses."""
        return ipaddress.ip_address(self.number).is_unspecified

    def url(self, here: bool = False) -> str:
        """The URL for a browser; with ``here``, for a browser on this machine."""
        host = self.host
        if self.is_any:
            host = "127.0.0.1" if here else socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"


def serve(options: DashboardOptions) -> int:
    """Show the study until the process is stopped; returns the exit code."""
    token = read_token(options.token_file, options.no_token)
    address, listener = listen(options.host, options.port)
    with listener, ExitStack() as opened:
        check_exposure(address, token, options.no_token, options.proxy)
        from .middleware.hosts import check_names

        check_names(options.allowed_host)
        # Imported late: these take seconds to import, and the checks above do not need them.
        from ..storage.compressed import is_published, unpacked
        from ..storage.url import shown, study_argument
        from ..study.config import load_study_file
        from .app import LiveDashboard
        from .connections import make_server

        config = load_study_file(options.study)
        url = config.storage_url(options.storage)
        if options.allow_writes and is_published(url):
            raise UserError(f"--allow-writes: {url} is compressed, and only a copy of it is shown")
        named = study_argument(options.study, options.storage)
        start = f"python -m hpo.worker --study {named}"
        artifacts = open_store(config.artifacts_place(options.storage, options.artifacts))
        shown_url = opened.enter_context(unpacked(url))
        live = LiveDashboard(shown_url, config.name, start, artifacts, config, named)
        try:
            app = guard(
                live,
                address,
                token=token,
                allow_writes=options.allow_writes,
                allowed_hosts=options.allowed_host,
            )
            largest = _LARGEST_BODY if options.allow_writes else _LARGEST_FORM
            server = make_server(app, listener, largest, _trust(options.proxy))
            mode = "writes allowed" if options.allow_writes else "read-only"
            print(f"study {config.name} in {shown(url)}, {mode}; Ctrl-C ends it")
            if not live.study_is_there:
                print(f"it does not exist yet; this waits for its first worker: {start}")
            print(address.url(), flush=True)
            threading.Thread(target=live.prepare, daemon=True).start()
            if options.open:
                # In a thread, because a text browser returns only when it is closed.
                urls = (address.url(here=True),)
                threading.Thread(target=webbrowser.open, args=urls, daemon=True).start()
            server.run()
        finally:
            live.close()
    return 0


def guard(
    app: WSGIApplication,
    address: Address,
    *,
    token: str | None = None,
    allow_writes: bool = False,
    allowed_hosts: Sequence[str] = (),
) -> WSGIApplication:
    """Wrap ``app`` in the middleware that makes it safe to leave open."""
    from .middleware.headers import safe_headers
    from .middleware.hosts import known_hosts
    from .middleware.login import Login
    from .middleware.read_only import read_only

    if not allow_writes:
        app = read_only(app)
    if token is not None:
        app = Login(app, token, cookie=f"runes_dashboard_{address.port}")
    names = [address.host, address.number, *allowed_hosts]
    if address.is_any:
        names.append(socket.gethostname())
    return safe_headers(known_hosts(app, names, any_address=address.is_any))


def read_token(path: Path | None, no_token: bool) -> str | None:
    """Read the token from the file or the environment; None if nobody needs one.

    Raises:
        UserError: the file can't be read, or has no token; the message does not show the token.
    """
    # Removed, so that a browser started by this process does not get it.
    token = os.environ.pop(TOKEN_VARIABLE, None)
    if no_token:
        return None
    where = TOKEN_VARIABLE
    if path is not None:
        where = f"--token-file {path}"
        try:
            token = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise UserError(f"{where}: {reason}; name a file with the token in it") from error
    if token is None:
        return None
    token = token.strip()
    if not token or not token.isprintable() or " " in token:
        raise UserError(f"{where} holds no token; write one word, the longer the better")
    return token


def listen(host: str, port: int) -> tuple[Address, socket.socket]:
    """Bind a socket to ``host`` and ``port``; returns the address and the socket.

    Raises:
        UserError: the port is taken or not allowed, or the host is not an address of this machine.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} is no address; write one of this machine's") from error
    # localhost has two addresses; the IPv4 one is tried by every client.
    family, _, _, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    number = str(where[0])
    both = family == socket.AF_INET6 and number == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server((number, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(_explain(error, host, port)) from error
    bound = Address(host.strip("[]"), number, int(listener.getsockname()[1]), family)
    return bound, listener


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken; write another, such as --port {port % 65535 + 1}"
    if error.errno == errno.EACCES:
        return f"port {port} of {host} is not allowed; write a --port above 1023"
    return f"can't listen on {host}: {error.strerror}; write a --host of this machine's"


def check_exposure(address: Address, token: str | None, no_token: bool, proxy: str | None) -> None:
    """Refuse to serve other machines without a token, unless ``--no-token`` asks for that.

    Raises:
        UserError: other machines could use the dashboard without a token.
    """
    if token is not None or no_token or (address.is_loopback and proxy is None):
        return
    way = f"--host {address.host}" if proxy is None or not address.is_loopback else "--proxy"
    raise UserError(
        f"{way} lets other machines in; ask them for a token (--token-file FILE or "
        f"${TOKEN_VARIABLE}), or write --no-token"
    )


def _trust(proxy: str | None) -> dict[str, object]:
    if proxy is None:
        return {"clear_untrusted_proxy_headers": True}
    return {
        "trusted_proxy": proxy,
        "trusted_proxy_headers": {"x-forwarded-proto", "x-forwarded-for"},
        "clear_untrusted_proxy_headers": True,
    }
