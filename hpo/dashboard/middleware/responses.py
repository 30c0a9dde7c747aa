"""Responses of the middleware itself: a small page for people, JSON for programs."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import werkzeug
from markupsafe import Markup
from werkzeug.exceptions import HTTPException

READING_METHODS = ("GET", "HEAD")

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}"
    "input,button{font:inherit;padding:.3rem .6rem}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# Our own pages run nothing, and send their form only to this server.
PAGE_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_PAGE = Markup(
    '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width">{head}'
    "<title>{title}</title><style>{style}</style></head>"
    "<body><h1>{title}</h1>{body}</body></html>"
)


class Request(werkzeug.Request):
    """A request to the dashboard."""

    # Our forms have only a token and a path; the dashboard reads its own bodies.
    max_content_length = 8192

    def __init__(self, environ: WSGIEnvironment) -> None:
        super().__init__(environ, populate_request=False)

    @property
    def is_reading(self) -> bool:
        """Whether the request's method changes nothing."""
        return self.method in READING_METHODS

    @property
    def wants_page(self) -> bool:
        """Whether a person will see the answer; the dashboard's own calls accept any type."""
        named = "text/html" in self.headers.get("Accept", "")
        return named and not self.path.startswith("/api/")


def application(view: Callable[[Request], WSGIApplication]) -> WSGIApplication:
    """Make a WSGI application of a function that returns a response or another application.

    An `HTTPException` that ``view`` raises becomes a response with its description.
    """

    def answering(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        try:
            answer = view(request)
        except HTTPException as error:
            answer = _refusal(request, error)
        return answer(environ, start_response)

    return answering


def page(
    title: str,
    body: Markup,
    status: int = 200,
    head: str = "",
    headers: Iterable[tuple[str, str]] = (),
) -> werkzeug.Response:
    """A page that may not run scripts; ``body`` and ``head`` are HTML."""
    text = _PAGE.format(title=title, style=Markup(_STYLE), head=Markup(head), body=body)
    own = [("Content-Security-Policy", PAGE_POLICY), *headers]
    return werkzeug.Response(text, status, own, mimetype="text/html")


def headers_of(error: HTTPException) -> list[tuple[str, str]]:
    """The headers of an error, such as Retry-After."""
    return [(name, value) for name, value in error.get_headers() if name != "Content-Type"]


def _refusal(request: Request, error: HTTPException) -> werkzeug.Response:
    text, status = error.description or error.name, error.code or 500
    if request.wants_page:
        body = Markup("<p>{}</p>").format(text)
        return page(error.name, body, status, headers=headers_of(error))
    content = json.dumps({"reason": text})  # in the form that the dashboard's page expects
    return werkzeug.Response(content, status, headers_of(error), mimetype="application/json")
