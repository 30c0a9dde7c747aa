"""Security headers of responses, and a check that all layers read a path alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.datastructures import Headers
from werkzeug.exceptions import BadRequest
from werkzeug.http import parse_options_header

from .responses import Request, application

# The dashboard's page: one script of its own, styles that it writes into itself, and plots that
# are compiled for WebGL, hence 'unsafe-eval'.
DASHBOARD_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# Everything else: nothing is loaded, nothing runs, and the origin is opaque.
STRICT_POLICY = "sandbox; default-src 'none'; base-uri 'none'; frame-ancestors 'none'"
# Types of pictures without scripts; artifacts of any other type are downloads.
INLINE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")

_EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer, with which browsers send forms without their origin.
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def safe_headers(app: WSGIApplication) -> WSGIApplication:
    """Limit each response of ``app`` to what its path needs.  This is the outermost layer."""

    def pass_plain(request: Request) -> WSGIApplication:
        if not is_plain(request.environ["PATH_INFO"]):
            raise BadRequest("This path is malformed.")
        return app

    checked = application(pass_plain)

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]

        def start(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
        ) -> Callable[[bytes], object]:
            confined = Headers(headers)
            _confine(path, status, confined)
            return start_response(status, confined.to_wsgi_list(), exc_info)

        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # the dashboard fails without it
        return checked(environ, start)

    return guarded


def is_plain(path: str) -> bool:
    """Whether all layers read ``path``, in WSGI's encoding, in the same way."""
    try:
        text = path.encode("latin-1").decode()
    except UnicodeError:  # the dashboard would drop those bytes
        return False
    parts = text.split("/")
    return (
        text.isprintable()
        and "\\" not in text
        and "//" not in text
        and "." not in parts
        and ".." not in parts
    )


def _confine(path: str, status: str, headers: Headers) -> None:
    policy = headers.get("Content-Security-Policy", STRICT_POLICY)
    if path.startswith("/artifacts/") and status.startswith("2"):
        policy = STRICT_POLICY
        _confine_artifact(headers)
    elif path == "/dashboard" or path.startswith("/dashboard/"):
        policy = DASHBOARD_POLICY
    if not path.startswith("/static/"):
        headers.setdefault("Cache-Control", "no-store")
    headers.remove("Access-Control-Allow-Origin")  # the dashboard offers artifacts to every site
    headers.update(_EVERYWHERE | {"Content-Security-Policy": policy})


def _confine_artifact(headers: Headers) -> None:
    """Trust only harmless types, because whoever wrote the artifact chose its type."""
    kind = parse_options_header(headers.get("Content-Type"))[0].lower()
    headers.remove("Content-Disposition")
    if kind in INLINE_TYPES:
        headers["Content-Type"] = kind
    else:
        # Without a file name, which would also come from whoever wrote it.
        headers["Content-Type"] = "application/octet-stream"
        headers["Content-Disposition"] = "attachment"
