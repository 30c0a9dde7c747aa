"""Let only those in who know the token: people by a page and a cookie, programs by a header."""

from __future__ import annotations

import hashlib
import hmac
import html
import math
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from http import HTTPStatus
from urllib.parse import parse_qs, quote
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from .responses import page, redirect, reply, wants_page

PATH = "/login"
STAYS_S = 7 * 86400.0

_LONGEST_FORM = 8192


class Guesses:
    """Counts each client's wrong tokens; after ``limit`` in ``window_s`` it has to wait."""

    def __init__(
        self,
        limit: int = 5,
        window_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._window_s = window_s
        self._clock = clock
        self._lock = threading.Lock()
        self._wrong: defaultdict[str, list[float]] = defaultdict(list)

    def wait_s(self, client: str) -> float:
        """Seconds until ``client`` may try again; 0: now."""
        with self._lock:
            self._forget()
            wrong = self._wrong.get(client, [])
            if len(wrong) < self._limit:
                return 0.0
            return wrong[-self._limit] + self._window_s - self._clock()

    def was_wrong(self, client: str) -> None:
        """Count a wrong token of ``client``'s."""
        with self._lock:
            self._wrong[client].append(self._clock())

    def _forget(self) -> None:
        since = self._clock() - self._window_s
        for client, moments in list(self._wrong.items()):
            moments[:] = [moment for moment in moments if moment > since]
            if not moments:
                del self._wrong[client]


class Login:
    """``app`` for those who know ``token``.

    The cookie holds the time until which it is good and a code for that.  The key of the code is
    made anew by each process: a cookie says nothing about the token, and a restart ends it.

    Args:
        cookie: its name; browsers share cookies among the ports of a host.
    """

    def __init__(
        self,
        app: WSGIApplication,
        token: str,
        cookie: str = "runes_dashboard",
        guesses: Guesses | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._token = token.encode()
        self._cookie = cookie
        self._guesses = guesses or Guesses()
        self._clock = clock
        self._key = secrets.token_bytes(32)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"].rstrip("/"), environ["REQUEST_METHOD"]
        if path == PATH and method == "POST":
            return self._log_in(environ, start_response)
        if self._has_cookie(environ):
            if path == PATH:
                return redirect(start_response, "/")
            return self._app(environ, start_response)
        given = _bearer(environ)
        if given is not None:
            refused = self._refused(environ, start_response, given)
            return self._app(environ, start_response) if refused is None else refused
        if path == PATH:
            return self._page(environ, start_response, HTTPStatus.OK, _next(environ))
        if wants_page(environ) and method in ("GET", "HEAD"):
            here = environ["PATH_INFO"].encode("latin-1")
            query = environ.get("QUERY_STRING", "")
            wanted = quote(here) + (f"?{query}" if query else "")
            return redirect(start_response, f"{PATH}?next={quote(wanted, safe='')}")
        text = f"Log in at {PATH}, or send the token: Authorization: Bearer TOKEN"
        return reply(environ, start_response, HTTPStatus.UNAUTHORIZED, text, _CHALLENGE)

    def _log_in(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        form = _form(environ)
        given, then = form.get("token", "").strip(), _local_path(form.get("next", ""))
        wait_s = self._guesses.wait_s(_client(environ))
        if wait_s > 0:
            status, text = HTTPStatus.TOO_MANY_REQUESTS, _too_many(wait_s)
            return self._page(environ, start_response, status, then, text, _retry(wait_s))
        if not self._is_token(given.encode()):
            self._guesses.was_wrong(_client(environ))
            text = "That is not the token."
            return self._page(environ, start_response, HTTPStatus.UNAUTHORIZED, then, text)
        until = str(int(self._clock() + STAYS_S))
        cookie = (
            f"{self._cookie}={until}.{self._code(until)}; Path=/; Max-Age={STAYS_S:.0f}; "
            "HttpOnly; SameSite=Strict"
        )
        if environ["wsgi.url_scheme"] == "https":
            cookie += "; Secure"
        return redirect(start_response, then, [("Set-Cookie", cookie)])

    def _refused(
        self, environ: WSGIEnvironment, start_response: StartResponse, given: bytes
    ) -> Iterable[bytes] | None:
        wait_s = self._guesses.wait_s(_client(environ))
        if wait_s > 0:
            status = HTTPStatus.TOO_MANY_REQUESTS
            return reply(environ, start_response, status, _too_many(wait_s), _retry(wait_s))
        if self._is_token(given):
            return None
        self._guesses.was_wrong(_client(environ))
        text = "That is not the token."
        return reply(environ, start_response, HTTPStatus.UNAUTHORIZED, text, _CHALLENGE)

    def _is_token(self, given: bytes) -> bool:
        # Digests: the time tells nothing of the token's length either.
        return hmac.compare_digest(_digest(self._key, given), _digest(self._key, self._token))

    def _has_cookie(self, environ: WSGIEnvironment) -> bool:
        for part in environ.get("HTTP_COOKIE", "").split(";"):
            name, _, value = part.strip().partition("=")
            until, _, code = value.partition(".")
            if (
                name == self._cookie
                and hmac.compare_digest(code.encode("latin-1"), self._code(until).encode())
                and float(until) > self._clock()
            ):
                return True
        return False

    def _code(self, until: str) -> str:
        # Of the token as well: another token, other codes.
        return _digest(self._key, b"cookie\0" + self._token + b"\0" + until.encode("latin-1")).hex()

    def _page(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        status: HTTPStatus,
        then: str,
        text: str = "",
        headers: Iterable[tuple[str, str]] = (),
    ) -> list[bytes]:
        body = (
            f"<p>{html.escape(text)}</p>"
            f'<form method="post" action="{PATH}">'
            f'<input type="hidden" name="next" value="{html.escape(then)}">'
            '<label>Token <input type="password" name="token" required autofocus '
            'autocomplete="current-password"></label> <button>Log in</button></form>'
        )
        return page(environ, start_response, status, "Runes dashboard", body, headers=headers)


_CHALLENGE = [("WWW-Authenticate", "Bearer")]


def _digest(key: bytes, content: bytes) -> bytes:
    return hmac.new(key, content, hashlib.sha256).digest()


def _bearer(environ: WSGIEnvironment) -> bytes | None:
    scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return given.strip().encode("latin-1") if scheme.lower() == "bearer" else None


def _client(environ: WSGIEnvironment) -> str:
    return str(environ.get("REMOTE_ADDR", ""))


def _form(environ: WSGIEnvironment) -> dict[str, str]:
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError:
        return {}
    if not 0 < length <= _LONGEST_FORM:
        return {}
    return _first_values(environ["wsgi.input"].read(length).decode("utf-8", "replace"))


def _first_values(query: str) -> dict[str, str]:
    try:
        return {name: values[0] for name, values in parse_qs(query, max_num_fields=8).items()}
    except ValueError:
        return {}


def _next(environ: WSGIEnvironment) -> str:
    return _local_path(_first_values(environ.get("QUERY_STRING", "")).get("next", ""))


def _local_path(path: str) -> str:
    """``path`` if it is one of this server's, else the start: nobody is sent elsewhere."""
    is_local = path.startswith("/") and not path.startswith("//") and path.isascii()
    return path if is_local and path.isprintable() and "\\" not in path else "/"


def _too_many(wait_s: float) -> str:
    return f"Too many wrong tokens; try again in {math.ceil(wait_s)} s."


def _retry(wait_s: float) -> list[tuple[str, str]]:
    return [("Retry-After", str(math.ceil(wait_s)))]
