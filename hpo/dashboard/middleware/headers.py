"""Headers that tell browsers what a response may do; and paths that can't be misread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from types import TracebackType
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from .responses import Headers, reply

# The dashboard's page: one script of its own, styles that it writes into itself, and plots that
# are compiled for WebGL, hence 'unsafe-eval'.
DASHBOARD_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# Everything else: nothing loads, nothing runs, and the origin is nobody's.
STRICT_POLICY = "sandbox; default-src 'none'; base-uri 'none'; frame-ancestors 'none'"
# Pictures that hold no script; of an artifact all else is a download.
INLINE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")

_EVERYWHERE: Headers = [
    ("X-Content-Type-Options", "nosniff"),
    # Not no-referrer: with it, forms would be sent without their origin.
    ("Referrer-Policy", "same-origin"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
_OURS = {
    "content-security-policy",
    *(name.lower() for name, _ in _EVERYWHERE),
    # The dashboard offers artifacts to every site.
    "access-control-allow-origin",
}


def safe_headers(app: WSGIApplication) -> WSGIApplication:
    """``app``, with each response confined to what its path needs.  The outermost layer."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]

        def start(
            status: str,
            headers: Headers,
            exc_info: tuple[type[BaseException], BaseException, TracebackType]
            | tuple[None, None, None]
            | None = None,
            /,
        ) -> Callable[[bytes], object]:
            return start_response(status, _confined(path, status, headers), exc_info)

        if not is_plain(path):
            text = "This path is malformed."
            return reply(environ, start, HTTPStatus.BAD_REQUEST, text)
        # The dashboard takes it for granted.
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")
        return app(environ, start)

    return guarded


def is_plain(path: str) -> bool:
    """Whether all layers read ``path``, as WSGI spells it, in one way."""
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


def _confined(path: str, status: str, headers: Headers) -> Headers:
    given = {name.lower(): value for name, value in headers}
    kept = [(name, value) for name, value in headers if name.lower() not in _OURS]
    if path.startswith("/artifacts/") and status.startswith("2"):
        policy = STRICT_POLICY
        kept = _as_artifact(kept, given.get("content-type", ""))
    elif path == "/dashboard" or path.startswith("/dashboard/"):
        policy = DASHBOARD_POLICY
    else:
        policy = given.get("content-security-policy", STRICT_POLICY)
    if not path.startswith("/static/") and "cache-control" not in given:
        kept.append(("Cache-Control", "no-store"))
    return [*kept, *_EVERYWHERE, ("Content-Security-Policy", policy)]


def _as_artifact(headers: Headers, content_type: str) -> Headers:
    """Whoever wrote the artifact chose its type: believe only the harmless ones."""
    kind = content_type.split(";")[0].strip().lower()
    ours = ("content-type", "content-disposition")
    kept = [(name, value) for name, value in headers if name.lower() not in ours]
    if kind in INLINE_TYPES:
        return [*kept, ("Content-Type", kind)]
    # Without a name, which would come from outside, too.
    return [
        *kept,
        ("Content-Type", "application/octet-stream"),
        ("Content-Disposition", "attachment"),
    ]
