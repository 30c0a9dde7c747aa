"""Require the token: from people by a page and a cookie, from programs by a header."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from urllib.parse import quote
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from itsdangerous import TimestampSigner
from markupsafe import Markup
from werkzeug import Response
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import (
    HTTPException,
    RequestEntityTooLarge,
    TooManyRequests,
    Unauthorized,
)
from werkzeug.utils import redirect

from .responses import Request, application, headers_of, page

PATH = "/login"
STAYS_S = 7 * 86400

_FORM = Markup(
    "<p>{text}</p>"
    f'<form method="post" action="{PATH}">'
    '<input type="hidden" name="next" value="{then}">'
    '<label>Token <input type="password" name="token" required autofocus '
    'autocomplete="current-password"></label> <button>Log in</button></form>'
)


class Guesses:
    """Counts each client's wrong tokens; after ``limit`` of them in ``window_s`` it has to wait."""

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
        """Seconds until ``client`` may try again; 0 if it may now."""
        with self._lock:
            self._forget()
            wrong = self._wrong.get(client, [])
            if len(wrong) < self._limit:
                return 0.0
            return wrong[-self._limit] + self._window_s - self._clock()

    def was_wrong(self, client: str) -> None:
        """Count a wrong token of ``client``."""
        with self._lock:
            self._wrong[client].append(self._clock())

    def _forget(self) -> None:
        since = self._clock() - self._window_s
        for client, moments in list(self._wrong.items()):
            moments[:] = [moment for moment in moments if moment > since]
            if not moments:
                del self._wrong[client]


class Login:
    """Limit ``app`` to clients that know ``token``.

    The cookie is a signed time, with a key that each process makes for itself.  So a cookie tells
    nothing about the token, and a restart ends every session.

    Args:
        cookie: name of the cookie; browsers share cookies among the ports of a host.
    """

    def __init__(
        self,
        app: WSGIApplication,
        token: str,
        cookie: str = "runes_dashboard",
        guesses: Guesses | None = None,
    ) -> None:
        self._app = app
        self._token = hashlib.sha256(token.encode()).digest()
        self._cookie = cookie
        self._guesses = guesses or Guesses()
        self._signer = TimestampSigner(
            secrets.token_bytes(32), salt="session", digest_method=hashlib.sha256
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return application(self._view)(environ, start_response)

    def _view(self, request: Request) -> WSGIApplication:
        is_login = request.path.rstrip("/") == PATH
        if is_login and request.method == "POST":
            return self._log_in(request)
        if self._has_session(request):
            return redirect("/", 303) if is_login else self._app
        # Not werkzeug's `Request.authorization`, which reads a token with "=" as parameters.
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            self._check(request, given.strip().encode("latin-1"))
            return self._app
        if is_login:
            return _form_page(_local_path(request.args.get("next", "")))
        if request.wants_page and request.is_reading:
            query = request.query_string.decode("latin-1")
            wanted = quote(request.path) + (f"?{query}" if query else "")
            return redirect(f"{PATH}?next={quote(wanted, safe='')}", 303)
        raise _unauthorized(f"Log in at {PATH}, or send the token: Authorization: Bearer TOKEN")

    def _log_in(self, request: Request) -> Response:
        try:
            token, then = (request.form.get(name, "") for name in ("token", "next"))
        except RequestEntityTooLarge:
            token, then = "", ""
        then = _local_path(then)
        try:
            self._check(request, token.strip().encode())
        except HTTPException as refused:
            return _form_page(then, refused)
        response = redirect(then, 303)
        response.set_cookie(
            self._cookie,
            self._signer.sign("session").decode(),
            max_age=STAYS_S,
            secure=request.is_secure,
            httponly=True,
            samesite="Strict",
        )
        return response

    def _has_session(self, request: Request) -> bool:
        cookies = request.cookies.getlist(self._cookie)
        return any(self._signer.validate(cookie, max_age=STAYS_S) for cookie in cookies)

    def _check(self, request: Request, given: bytes) -> None:
        """Raise an `HTTPException` unless this is the token and the client may try."""
        client = request.remote_addr or ""
        wait_s = math.ceil(self._guesses.wait_s(client))
        if wait_s > 0:
            text = f"Too many wrong tokens; try again in {wait_s} s."
            raise TooManyRequests(text, retry_after=wait_s)
        # Digests are compared, so that the time does not tell the token's length.
        if not hmac.compare_digest(hashlib.sha256(given).digest(), self._token):
            self._guesses.was_wrong(client)
            raise _unauthorized("That is not the token.")


def _unauthorized(text: str) -> Unauthorized:
    challenge = WWWAuthenticate("bearer", {"realm": "dashboard"})
    return Unauthorized(text, www_authenticate=challenge)


def _form_page(then: str, refused: HTTPException | None = None) -> Response:
    body = _FORM.format(text=refused.description if refused else "", then=then)
    if refused is None:
        return page("Runes dashboard", body)
    return page("Runes dashboard", body, refused.code or 401, headers=headers_of(refused))


def _local_path(path: str) -> str:
    """``path`` if it is on this server, else the start page, so that nobody is sent elsewhere."""
    is_local = path.startswith("/") and not path.startswith("//") and path.isascii()
    return path if is_local and path.isprintable() and "\\" not in path else "/"
