"""The dashboard of whatever database is at a URL, for as long as the server runs."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from wsgiref.util import setup_testing_defaults

import bottle
import optuna_dashboard
from optuna.artifacts.exceptions import ArtifactNotFound

from finetune.errors import UserError

from ..artifacts.store import Store
from ..storage.open import open_storage
from ..storage.url import parse_url, shown
from .middleware.responses import page, redirect, reply
from .plugins import with_notes, without_infeasible
from .response_cache import Prepared
from .storage import WatchedStorage

_START = "/dashboard"
_LOOK_AGAIN_S = 5
_OPENING_S = 10.0


class LiveDashboard:
    """A WSGI application: optuna-dashboard, opened anew when a SQLite file is put in its place.

    ``/`` leads to the study; while it does not exist, it says so and looks again.

    Args:
        study: the study's name in the database.
        start: the command that would begin it, for the advice.
        artifacts: the store of files that belong to trials.

    Raises:
        UserError: the database can't be opened.
    """

    def __init__(self, url: str, study: str, start: str, artifacts: Store | None = None) -> None:
        self._url = url
        self._study = study
        self._start = start
        self._artifacts = artifacts
        self._lock = threading.Lock()
        self._open()

    @property
    def study_is_there(self) -> bool:
        """Whether the study exists by now, as far as the database answers."""
        try:
            self.storage.get_study_id_from_name(self._study)
        except (KeyError, bottle.HTTPError):
            return False
        return True

    def prepare(self) -> None:
        """Read the study, so that the first page is as quick as the next; errors are the page's."""
        with suppress(Exception):
            study_id = self.storage.get_study_id_from_name(self._study)
            for _ in range(2):  # the first reads, the second keeps
                environ: dict[str, Any] = {"PATH_INFO": f"/api/studies/{study_id}"}
                setup_testing_defaults(environ)
                for _ in self.app(environ, lambda *_: lambda _: None):
                    pass

    def close(self) -> None:
        """Let go of the database."""
        self.storage.engine.dispose()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            self._follow()
            if environ["PATH_INFO"] in ("", "/") and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
                return self._home(environ, start_response)
        except UserError as error:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            return reply(environ, start_response, status, str(error))
        except bottle.HTTPError as error:
            status = HTTPStatus(error.status_code)
            return reply(environ, start_response, status, str(error.body))
        return self.app(environ, start_response)

    def _home(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            study_id = self.storage.get_study_id_from_name(self._study)
        except KeyError:
            body = (
                f"<p>There is no study {html.escape(self._study)} in "
                f"{html.escape(shown(self._url))} yet. This page waits for its first worker:</p>"
                f"<p><code>{html.escape(self._start)}</code></p>"
                f'<p><a href="{_START}">All studies of this database</a></p>'
            )
            head = f'<meta http-equiv="refresh" content="{_LOOK_AGAIN_S}">'
            return page(environ, start_response, HTTPStatus.OK, self._study, body, head)
        return redirect(start_response, f"{_START}/studies/{study_id}")

    def _follow(self) -> None:
        """Notice that the database's file was removed, or is another by now."""
        with self._lock:
            there = _identity(self._url)
            if there is None:
                raise UserError(f"{shown(self._url)} is gone; it will be shown when it is back")
            if there != self._there:
                self.close()
                self._open()

    def _open(self) -> None:
        opened = open_storage(self._url, retry_s=_OPENING_S)
        # A connection stays open from now on, and so the file's number can't become another's.
        opened.get_all_studies()
        self.storage = WatchedStorage(opened)
        self._there = _identity(self._url)
        app = optuna_dashboard.wsgi(self.storage, artifact_store=self._artifacts)
        app.install(Prepared(app, self.storage))
        app.install(without_infeasible)
        app.install(with_notes(self.storage.note_of))
        app.install(_what_is_missing)
        self.app: WSGIApplication = app


def _identity(url: str) -> object:
    """Equal for the same database; None where it has no file any more."""
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return url
    try:
        stat = Path(str(parsed.database).removeprefix("file:")).stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _what_is_missing(view: Callable[..., Any]) -> Callable[..., Any]:
    """A plug-in for the dashboard: an artifact that is not there is no fault of the server's."""

    def answering(*args: Any, **kwargs: Any) -> Any:
        try:
            return view(*args, **kwargs)
        except (ArtifactNotFound, KeyError) as error:
            raise bottle.HTTPError(HTTPStatus.NOT_FOUND.value, "Not found.") from error
        except OSError as error:
            words = f"The store of artifacts does not answer: {error.strerror or error}"
            raise bottle.HTTPError(HTTPStatus.SERVICE_UNAVAILABLE.value, words) from error

    return answering
