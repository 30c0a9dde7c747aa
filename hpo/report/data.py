"""All that the page is made of, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from finetune.challenge import points
from finetune.recipe import Recipe

from ..analysis.references import Reference
from ..storage.recovery import Heartbeat
from ..study.config import StudyConfig
from ..study.manifest import MANIFEST_KEY
from ..trial.record import Run, best_of
from .document import Picture


@dataclass(frozen=True)
class Given:
    """A study at one moment, and what it is compared with."""

    config: StudyConfig
    asked: str  # the study as the person named it, for commands
    url: str  # of the database
    attrs: Mapping[str, Any]  # user attributes of the study
    runs: Sequence[Run]
    beats: Sequence[Heartbeat]
    now: datetime  # aware
    references: Sequence[Reference] = ()
    pictures: Sequence[Picture] = ()
    picture_remarks: Sequence[str] = ()  # what was left out, and why

    @cached_property
    def finished(self) -> list[Run]:
        return [r for r in self.runs if r.state.is_finished()]

    @cached_property
    def best(self) -> list[Run]:
        """Complete, feasible trials, lowest loss first."""
        return best_of(self.runs)

    @cached_property
    def default_run(self) -> Run | None:
        """The best good trial of the default recipe with the study's fixed values."""
        recipe = Recipe.from_dict(self.config.fixed)
        return next((r for r in self.best if r.ran(recipe)), None)

    @property
    def manifest(self) -> Mapping[str, Any]:
        stored = self.attrs.get(MANIFEST_KEY)
        return stored if isinstance(stored, Mapping) else {}

    @property
    def has_points(self) -> bool:
        """Whether losses are of the drawings that the author's thresholds are for."""
        # What was measured may be another's choice than the file's: a command line's.
        measured = str(self.manifest.get("data", "omniglot ")).rpartition(" ")
        is_theirs = measured[0] == "omniglot" and "/" not in measured[2]
        return self.config.instances.has_points and is_theirs


def points_text(loss: float) -> str:
    """The author's points for a mean loss."""
    found = points(loss)
    return "1 point" if found == 1 else f"{found} points"
