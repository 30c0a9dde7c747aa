"""Replies of this package's own: a small page for browsers, JSON for programs."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from http import HTTPStatus
from wsgiref.types import StartResponse, WSGIEnvironment

Headers = list[tuple[str, str]]

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}"
    "input,button{font:inherit;padding:.3rem .6rem}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# A page of ours runs nothing and sends its form only here.
PAGE_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


def is_reading(environ: WSGIEnvironment) -> bool:
    """Whether the request's method is one that changes nothing."""
    return environ["REQUEST_METHOD"] in ("GET", "HEAD")


def wants_page(environ: WSGIEnvironment) -> bool:
    """Whether a person will look at the answer: the dashboard's own calls take any type."""
    named = "text/html" in environ.get("HTTP_ACCEPT", "")
    return named and not environ["PATH_INFO"].startswith("/api/")


def reply(
    environ: WSGIEnvironment,
    start_response: StartResponse,
    status: HTTPStatus,
    text: str,
    headers: Iterable[tuple[str, str]] = (),
) -> list[bytes]:
    """One sentence: as a page where one is wanted, else as the JSON that the dashboard expects."""
    if wants_page(environ):
        body = f"<p>{html.escape(text)}</p>"
        return page(environ, start_response, status, status.phrase, body, headers=headers)
    content = json.dumps({"reason": text}).encode()
    return _send(environ, start_response, status, "application/json", content, headers)


def page(
    environ: WSGIEnvironment,
    start_response: StartResponse,
    status: HTTPStatus,
    title: str,
    body: str,
    head: str = "",
    headers: Iterable[tuple[str, str]] = (),
) -> list[bytes]:
    """A page; ``body`` and ``head`` are HTML."""
    text = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">{head}'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{body}</body></html>"
    )
    own: Headers = [("Content-Security-Policy", PAGE_POLICY), *headers]
    return _send(environ, start_response, status, "text/html; charset=utf-8", text.encode(), own)


def redirect(
    start_response: StartResponse, path: str, headers: Iterable[tuple[str, str]] = ()
) -> list[bytes]:
    """Send the browser on to ``path``, by GET; without a host, which a proxy may have changed."""
    status = HTTPStatus.SEE_OTHER
    start_response(
        f"{status.value} {status.phrase}",
        [("Location", path), ("Content-Length", "0"), ("Cache-Control", "no-store"), *headers],
    )
    return []


def _send(
    environ: WSGIEnvironment,
    start_response: StartResponse,
    status: HTTPStatus,
    content_type: str,
    content: bytes,
    headers: Iterable[tuple[str, str]],
) -> list[bytes]:
    sent = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(content))),
        ("Cache-Control", "no-store"),
        *headers,
    ]
    start_response(f"{status.value} {status.phrase}", sent)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [content]
