"""Pictures that a worker makes: one of each call, and a plot of each trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

from ..artifacts.trial_plot import plot_trial
from ..artifacts.uploads import Artifact, Gallery, linked
from ..problem.base import Instance, Problem
from ..trial.record import read_trial

_PLOT = "learning curve and loss by time.png"


class Visuals:
    """Makes a worker's pictures and plots; an error in one never fails a trial.

    Args:
        gallery: stores the files.
        problem: draws the pictures of its instances.
    """

    def __init__(self, gallery: Gallery, problem: Problem) -> None:
        self._gallery = gallery
        self._problem = problem

    def of_call(self, instance: Instance, model: Any) -> Artifact | None:
        """Draw the picture of a call; None if there is none."""
        return self._gallery.keep(_name(instance), lambda: self._problem.picture(instance, model))

    def of_kept_call(self, instance: Instance, picture: str | None) -> Artifact | None:
        """The stored picture of a call that was read; None if it has none."""
        return None if picture is None else linked(picture, _name(instance))

    def of_trial(self, trial: optuna.Trial) -> Mapping[str, str]:
        """Draw the plot of a trial that ends; returns the system attributes that link it."""
        calls = read_trial(trial).instances
        plot = self._gallery.keep(_PLOT, lambda: plot_trial(calls)) if calls else None
        return plot.link if plot else {}


def _name(instance: Instance) -> str:
    return f"{instance.label.replace('/', '-')}.png"
