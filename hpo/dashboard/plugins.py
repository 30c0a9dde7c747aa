"""Plug-ins for optuna-dashboard's views."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import bottle
from optuna.artifacts.exceptions import ArtifactNotFound

_PAGE = "/dashboard"
# Without this, columns of the page are as wide as their longest line.
_FITTING = (
    "<style>main{min-width:0;overflow-x:auto}main .MuiBox-root{min-width:0}"
    "main .MuiBox-root:has(>.MuiList-root){min-width:200px}"  # trials beside their details
    "@media(max-width:800px){main .MuiGrid-container>*{max-width:100%;flex:0 0 100%}}</style>"
)


def without_infeasible(view: Callable[..., Any]) -> Callable[..., Any]:
    """A plug-in for the dashboard: infeasible trials are never shown as best."""

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


class FitsNarrowScreens:
    """A plug-in for the dashboard: its page is not wider than the screen."""

    name = "fits-narrow-screens"
    api = 2

    def apply(self, view: Callable[..., Any], route: Any) -> Callable[..., Any]:
        """Add our style to the page, if this is the page's view."""
        if not route.rule.startswith(_PAGE):
            return view

        def fitting(*args: Any, **kwargs: Any) -> Any:
            answer = view(*args, **kwargs)
            if not hasattr(answer.body, "read"):  # a HEAD request, or the page is unchanged
                return answer
            with answer.body as file:
                text = file.read().decode()
            answer.body = text.replace("</head>", f"{_FITTING}</head>")
            answer.set_header("Content-Length", str(len(answer.body.encode())))
            return answer

        return fitting
