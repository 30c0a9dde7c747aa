"""Plug-ins for optuna-dashboard's views."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import bottle
from optuna.artifacts.exceptions import ArtifactNotFound


def without_infeasible(view: Callable[..., Any]) -> Callable[..., Any]:
    """A plug-in for the dashboard: it shows as best whatever is in ``best_trials``."""

    def filtered(*args: Any, **kwargs: Any) -> Any:
        answer = view(*args, **kwargs)
        if isinstance(answer, dict) and "best_trials" in answer:
            answer["best_trials"] = [
                trial
                for trial in answer["best_trials"]
                if all(excess <= 0 for excess in trial["constraints"])
            ]
        return answer

    return filtered


def without_missing(view: Callable[..., Any]) -> Callable[..., Any]:
    """A plug-in for the dashboard: a missing artifact is answered by 404 instead of 500."""

    def answering(*args: Any, **kwargs: Any) -> Any:
        try:
            return view(*args, **kwargs)
        except (ArtifactNotFound, KeyError) as error:
            raise bottle.HTTPError(HTTPStatus.NOT_FOUND.value, "Not found.") from error
        except OSError as error:
            text = f"The store of artifacts does not answer: {error.strerror or error}"
            raise bottle.HTTPError(HTTPStatus.SERVICE_UNAVAILABLE.value, text) from error

    return answering
