"""What people see of a trial: made while it runs, and at its end."""

from __future__ import annotations

from typing import Any

import optuna

from ..artifacts.trial_plot import plot_trial
from ..artifacts.uploads import Artifact, Gallery
from ..dashboard.attrs import NOTE_KEY
from ..problem.base import Instance, Method, Problem
from ..process.logging import warn
from ..report.sections.trial import trial_note
from ..trial.outcome import Ending

_PLOT = "learning curve and loss by time.png"


class Showing:
    """Makes a worker's pictures, plots and notes; none of them can fail a trial.

    Args:
        gallery: keeps the files.
        feasible_s: seconds within which a call must return.
        method: whose values the notes name.
        problem: whose instances the pictures show.
    """

    def __init__(
        self, gallery: Gallery, feasible_s: float, method: Method, problem: Problem
    ) -> None:
        self._gallery = gallery
        self._feasible_s = feasible_s
        self._method, self._problem = method, problem
        self._told = False

    def of_call(self, instance: Instance, model: Any) -> Artifact | None:
        """The picture of one call; None if there is none."""
        name = f"{instance.label.replace('/', '-')}.png"
        return self._gallery.keep(name, lambda: self._problem.picture(instance, model))

    def of_trial(self, trial: optuna.Trial, ending: Ending) -> dict[str, Any]:
        """System attributes of a trial that ends now: its note, and the link to its plot."""
        measured = trial._cached_frozen_trial
        calls = measured.user_attrs.get("instances", [])
        plot = self._gallery.keep(_PLOT, lambda: plot_trial(calls)) if calls else None
        kept = [(call["instance"], call["picture"]) for call in calls if call.get("picture")]
        if plot is not None:
            kept.append(("learning curve and loss by time", plot.id))
        home = f"/artifacts/{trial.study._study_id}/{trial._trial_id}"
        links = [(title, f"{home}/{artifact_id}") for title, artifact_id in kept]
        attrs: dict[str, Any] = dict(plot.link) if plot else {}
        try:
            attrs[NOTE_KEY] = trial_note(measured, ending, self._feasible_s, self._method, links)
        except Exception as error:
            if not self._told:
                warn(f"notes can't be written ({error!r}); trials go on without them")
            self._told = True
        return attrs
