"""A study's finished trials as JSON, made once: of large studies that is most of a page's time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import bottle
from optuna.trial import FrozenTrial

from .storage import WatchedStorage

_RULE = "/api/studies/<study_id:int>"


@dataclass(frozen=True)
class _Known:
    """The first trials of a study, all finished, with their texts."""

    kept: dict[str, Any]  # what the dashboard kept of trials elsewhere as they were made
    texts: list[tuple[FrozenTrial, str]]


class Prepared:
    """A plug-in for the dashboard, to be installed before those that change its answers.

    The dashboard's page first asks for all trials, then for those after the ones that it knows to
    be finished.  Here the view is always asked in the second way, and what is known is put before
    its answer.  A trial's text is kept for as long as the storage gives the same object for it,
    and nobody changes what the dashboard keeps of trials elsewhere.

    Args:
        app: the dashboard.
        storage: what it shows.
    """

    name = "prepared"
    api = 2

    def __init__(self, app: Any, storage: WatchedStorage) -> None:
        self._app = app
        self._storage = storage
        self._lock = threading.Lock()
        self._known: dict[int, _Known] = {}  # by study

    def apply(self, view: Callable[..., Any], route: Any) -> Callable[..., Any]:
        """The view with its answers prepared, if it is the one."""
        if route.rule != _RULE or route.method != "GET":
            return view

        def prepared(study_id: int) -> Any:
            try:
                wanted = int(bottle.request.params.get("after", 0))
            except ValueError:
                wanted = -1
            if wanted < 0:
                return view(study_id=study_id)  # which says what is wrong
            known = self._still_true(study_id)
            n = len(known.texts)
            if wanted < n:
                bottle.request["QUERY_STRING"] = f"after={n}"
            answer = view(study_id=study_id)
            if not isinstance(answer, dict) or "trials" not in answer:
                return answer
            shown = answer.pop("trials")
            texts = [json.dumps(trial) for trial in shown]
            seen = self._seen(study_id)
            if wanted <= n and seen is not None and _same(seen[n:], shown):
                self._learn(study_id, known, seen, texts)
            texts = [text for _, text in known.texts[wanted:]] + texts
            return f'{{"trials": [{", ".join(texts)}], {json.dumps(answer)[1:]}'

        return prepared

    def _seen(self, study_id: int) -> list[FrozenTrial] | None:
        """The trials that a view last read; it keeps them for seconds."""
        found: list[FrozenTrial] | None = self._app._inmemory_cache._trials_cache.get(study_id)
        return found

    def _still_true(self, study_id: int) -> _Known:
        try:
            kept = self._storage.kept_of_trials(study_id)
            now = self._storage.get_all_trials(study_id, deepcopy=False)
        except (bottle.HTTPError, KeyError):  # the view meets it, too, and tells it in its own way
            return _Known({}, [])
        with self._lock:
            known = self._known.get(study_id)
        if known is None or known.kept != kept:
            return _Known(kept, [])
        pairs = zip(known.texts, now, strict=False)
        return _Known(kept, [k for k, _ in takewhile(lambda pair: pair[0][0] is pair[1], pairs)])

    def _learn(
        self, study_id: int, known: _Known, seen: list[FrozenTrial], texts: list[str]
    ) -> None:
        """Keep the texts of the trials after the known ones, up to the first that still runs."""
        first = len(known.texts)
        more = list(
            takewhile(lambda one: one[0].state.is_finished(), zip(seen[first:], texts, strict=True))
        )
        grown = _Known(known.kept, known.texts + more)
        with self._lock:
            self._known[study_id] = grown
        # Where no trial runs, the dashboard forgets which trials' parameters it has gone through,
        # and goes through all of them at every poll.
        cache = self._app._inmemory_cache._cached_extra_study_property_cache.get(study_id)
        if cache is not None and grown.texts:
            cache._cursor = max(cache._cursor, grown.texts[-1][0].number)


def _same(trials: Sequence[FrozenTrial], shown: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a view has shown these trials: another request may have read newer ones since."""
    theirs = [(one.get("number"), str(one.get("state")).upper()) for one in shown]
    return theirs == [(trial.number, trial.state.name) for trial in trials]
