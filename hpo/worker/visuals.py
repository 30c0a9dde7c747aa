"""Pictures that a worker makes: one of each call, and a plot of each trial."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from torch import nn

from ..artifacts.trial_plot import plot_trial
from ..artifacts.uploads import Artifact, Gallery
from ..problem.instances import Instance
from ..problem.pictures import InstancePictures
from ..trial.record import read_trial

_PLOT = "learning curve and loss by time.png"


class Visuals:
    """Makes a worker's pictures and plots; none of them can fail a trial.

    Args:
        gallery: keeps the files.
    """

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._pictures = InstancePictures()

    def of_call(self, instance: Instance, adapted: nn.Module) -> Artifact | None:
        """The picture of one call; None if there is none."""
        name = f"{instance.label.replace('/', '-')}.png"
        return self._gallery.keep(name, lambda: self._pictures.draw(instance, adapted))

    def of_trial(self, trial: optuna.Trial) -> Mapping[str, str]:
        """The plot of a trial that ends now, as the system attributes that link it."""
        calls = read_trial(trial).instances
        plot = self._gallery.keep(_PLOT, lambda: plot_trial(calls)) if calls else None
        return plot.link if plot else {}
