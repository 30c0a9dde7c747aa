"""Cache of finished trials as JSON. In a large study making it is most of a page's time."""

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
    """The first trials of a study, all finished, with their JSON."""

    kept: dict[str, Any]  # the dashboard's own attributes of trials when the JSON was made
    texts: list[tuple[FrozenTrial, str]]


class Prepared:
    """A plug-in for the dashboard, to be installed before those that change its answers.

    The dashboard's page first asks for all trials, then only for those after the finished ones that
    it has.  Here the view is always asked in the second way, and the cached trials are put before
    its answer.  A trial's JSON is used as long as the storage returns the same object for it, and
    the dashboard's own attributes of trials do not change.

    Args:
        app: the dashboard.
        storage: the dashboard's storage.
    """

    name = "prepared"
    api = 2

    def __init__(self, app: Any, storage: WatchedStorage) -> None:
        self._app = app
        self._storage = storage
        self._lock = threading.Lock()
        self._known: dict[int, _Known] = {}  # by study

    def apply(self, view: Callable[..., Any], route: Any) -> Callable[..., Any]:
        """Answer from the cache, if this is the view of a study's trials."""
        if route.rule != _RULE or route.method != "GET":
            return view

        def prepared(study_id: int) -> Any:
            try:
                wanted = int(bottle.request.params.get("after", 0))
            except ValueError:
                wanted = -1
            if wanted < 0:
                return view(study_id=study_id)  # it says what is wrong
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
        """The trials that a view last read, which it caches for seconds."""
        found: list[FrozenTrial] | None = self._app._inmemory_cache._trials_cache.get(study_id)
        return found

    def _still_true(self, study_id: int) -> _Known:
        try:
            kept = self._storage.kept_of_trials(study_id)
            now = self._storage.get_all_trials(study_id, deepcopy=False)
        except (bottle.HTTPError, KeyError):  # the view has the same error and reports it itself
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
        """Cache the JSON of the trials after the cached ones, up to the first unfinished one."""
        first = len(known.texts)
        more = list(
            takewhile(lambda one: one[0].state.is_finished(), zip(seen[first:], texts, strict=True))
        )
        grown = _Known(known.kept, known.texts + more)
        with self._lock:
            self._known[study_id] = grown
        # When no trial runs, the dashboard forgets which trials' parameters it has read, and reads
        # all of them at every poll.
        cache = self._app._inmemory_cache._cached_extra_study_property_cache.get(study_id)
        if cache is not None and grown.texts:
            cache._cursor = max(cache._cursor, grown.texts[-1][0].number)


def _same(trials: Sequence[FrozenTrial], shown: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a view has shown exactly these trials; another request may have read newer ones."""
    theirs = [(one.get("number"), str(one.get("state")).upper()) for one in shown]
    return theirs == [(trial.number, trial.state.name) for trial in trials]
