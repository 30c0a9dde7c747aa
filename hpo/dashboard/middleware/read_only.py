"""Reject requests that change something."""

from __future__ import annotations

import re
from wsgiref.types import WSGIApplication

from werkzeug.exceptions import Forbidden, NotFound

from .responses import Request, application

# The dashboard's endpoints whose GET writes nothing.  This is a list of allowed endpoints, so one
# that a later release adds is rejected until it has been checked.
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
    """Answer requests to ``app`` that change something with 403."""

    def pass_reading(request: Request) -> WSGIApplication:
        if not request.is_reading:
            raise Forbidden(
                "This dashboard is read-only. To change studies with it, "
                "start it with --allow-writes."
            )
        if not reads(request.path):
            raise NotFound(
                "There is no such page, or it is not known to leave studies as they are."
            )
        return app

    return application(pass_reading)
