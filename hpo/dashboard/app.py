"""The dashboard of a database, as a WSGI application."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import bottle
import optuna_dashboard
from markupsafe import Markup
from werkzeug import Response
from werkzeug.exceptions import BadRequest, NotFound, ServiceUnavailable, abort
from werkzeug.test import Client
from werkzeug.utils import redirect

from ..artifacts.store import Store
from ..errors import UserError
from ..storage.open import has_studies, open_storage, open_to_read
from ..storage.url import IN_MEMORY, shown, sqlite_file
from ..study.config import StudyConfig
from .middleware.responses import Request, application, page
from .notes import Notes
from .plugins import FitsNarrowScreens, without_infeasible, without_missing
from .response_cache import Prepared
from .storage import WatchedStorage

_START = "/dashboard"
_OPENING_S = 10.0
_PLOT = "/plot/"
_MOST_DIGITS = 18  # of an id; databases have no larger ones
_REFRESH = '<meta http-equiv="refresh" content="5">'
_WAITING = Markup(
    "<p>There is no study {study} in {url} yet. This page waits for its first worker:</p>"
    f'<p><code>{{start}}</code></p><p><a href="{_START}">All studies of this database</a></p>'
)


class LiveDashboard:
    """A WSGI application: optuna-dashboard, reopened if its SQLite file is replaced.

    ``/`` redirects to the study.  While the study does not exist, a page says so and reloads
    itself.

    Args:
        url: URL of the database.
        study: the study's name in the database.
        start: the command that starts the study; it is shown while the study does not exist.
        artifacts: store of the files that belong to trials.
        config: the study's file; without it the study has neither note nor plots.
        study_argument: the study's name or path as the user wrote it.

    Raises:
        UserError: the database can't be opened.
    """

    def __init__(
        self,
        url: str,
        study: str,
        start: str,
        artifacts: Store | None = None,
        config: StudyConfig | None = None,
        study_argument: str = "",
    ) -> None:
        self._url = url
        self._study = study
        self._start = start
        self._artifacts = artifacts
        self._config = config
        self._argument = study_argument
        self._lock = threading.Lock()
        self._open()

    @property
    def study_is_there(self) -> bool:
        """Whether the study exists; false if the database does not answer."""
        try:
            self.storage.get_study_id_from_name(self._study)
        except (KeyError, bottle.HTTPError):
            return False
        return True

    def prepare(self) -> None:
        """Read the study ahead, so that its first page is quick.  Errors are left to that page."""
        with suppress(Exception):
            study_id = self.storage.get_study_id_from_name(self._study)
            for _ in range(2):  # the first request reads, the second fills the cache
                Client(self.app).get(f"/api/studies/{study_id}").get_data()

    def close(self) -> None:
        """Close the database."""
        self._notes.close()
        self.storage.engine.dispose()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return application(self._view)(environ, start_response)

    def _view(self, request: Request) -> WSGIApplication:
        try:
            _check(request)
            self._follow()
            return self._home() if request.path == "/" and request.is_reading else self.app
        except UserError as error:
            raise ServiceUnavailable(str(error)) from error
        except bottle.HTTPError as error:
            abort(error.status_code, str(error.body))

    def _home(self) -> Response:
        try:
            study_id = self.storage.get_study_id_from_name(self._study)
        except KeyError:
            body = _WAITING.format(study=self._study, url=shown(self._url), start=self._start)
            return page(self._study, body, head=_REFRESH)
        return redirect(f"{_START}/studies/{study_id}", 303)

    def _follow(self) -> None:
        """Reopen the database if its file was removed or replaced."""
        with self._lock:
            there = _identity(self._url)
            if there is None:
                raise UserError(f"{shown(self._url)} is gone; it will be shown when it is back")
            if there != self._there:
                self.close()
                self._open()

    def _open(self) -> None:
        # A missing database is created, so that the page can wait for its first study.
        open_it = open_to_read if has_studies(self._url) else open_storage
        opened = open_it(self._url, retry_s=_OPENING_S)
        # This connection stays open, so that no other file can get its inode number.
        opened.get_all_studies()
        self.storage = WatchedStorage(opened)
        self._there = _identity(self._url)
        app = optuna_dashboard.wsgi(self.storage, artifact_store=self._artifacts)
        app.install(Prepared(app, self.storage))
        app.install(without_infeasible)
        app.install(without_missing)
        app.install(FitsNarrowScreens())
        has_pictures = self._artifacts is not None
        self._notes = Notes(self.storage, self._config, self._argument, has_pictures)
        app.install(self._notes)
        self.app: WSGIApplication = app


def _check(request: Request) -> None:
    """Reject requests that would make the dashboard fail.

    Raises:
        NotFound: an id in the path is larger than any id in a database.
        BadRequest: ``after`` is not a whole number.
        NotImplemented: the server can't make this plot, because Plotly is not installed.
    """
    if _PLOT in request.path and find_spec("plotly") is None:
        abort(501, "Plotly is not installed on this server; the page draws its own plots.")
    for part in request.path.split("/"):
        if part.isdecimal() and len(part) > _MOST_DIGITS:
            raise NotFound("There is nothing of that number.")
    after = request.args.get("after", "0")
    if not after.removeprefix("-").isdecimal() or len(after) > _MOST_DIGITS:
        raise BadRequest("after should be a whole number.")


def _identity(url: str) -> object:
    """An object that is equal for the same database; None if its file is gone."""
    file = sqlite_file(url)
    if file is None or file == IN_MEMORY:
        return url
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
