"""Plug-ins for optuna-dashboard's views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
