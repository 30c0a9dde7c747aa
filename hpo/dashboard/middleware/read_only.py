"""Let only such requests through that change nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from .responses import is_reading, reply

# The dashboard's endpoints whose GET was seen to write nothing.  A list of what is allowed: an
# endpoint that a later release adds is refused until it is looked at.
_READS = (
    r"/?",
    r"/dashboard(/.*)?",
    r"/favicon\.ico",
    r"/static/.+",
    r"/incompatible-rdb-schema",
    r"/api/meta",
    r"/api/studies",
    r"/api/studies/\d+",
    r"/api/studies/\d+/param_importances",
    r"/api/studies/\d+/plot/[^/]+",
    r"/csv/\d+",
    r"/artifacts/\d+(/\d+)?/[0-9a-fA-F-]+",
)
_READ = re.compile("|".join(f"(?:{pattern})" for pattern in _READS))


def reads(path: str) -> bool:
    """Whether a GET of ``path`` is known to change nothing."""
    return _READ.fullmatch(path.rstrip("/")) is not None


def read_only(app: WSGIApplication) -> WSGIApplication:
    """``app`` without what changes something; that is answered by 403."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not is_reading(environ):
            text = (
                "This dashboard is read-only. To change studies with it, "
                "start it with --allow-writes."
            )
            return reply(environ, start_response, HTTPStatus.FORBIDDEN, text)
        if not reads(environ["PATH_INFO"]):
            text = "There is no such page, or it is not known to leave studies as they are."
            return reply(environ, start_response, HTTPStatus.NOT_FOUND, text)
        return app(environ, start_response)

    return guarded
