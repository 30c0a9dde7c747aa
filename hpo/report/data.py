"""The data of a report, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from ..analysis.references import Reference
from ..analysis.status import Status, spent_budget, status_of
from ..storage.recovery import Heartbeat
from ..study.config import StudyConfig
from ..study.confirmation import Confirmation, read_confirmation
from ..study.control import wishes_in
from ..study.manifest import read_manifest
from ..trial.run import Run, best_of
from ..trial.stored import Remark
from .document import Picture


@dataclass(frozen=True)
class StudyData:
    """A study at one moment, with the references that it is compared with."""

    config: StudyConfig
    study_argument: str  # the text after --study in commands, by `storage.url.study_argument`
    url: str  # of the database
    attrs: Mapping[str, Any]  # user attributes of the study
    runs: Sequence[Run]
    beats: Sequence[Heartbeat]
    now: datetime  # aware
    references: Sequence[Reference] = ()
    pictures: Sequence[Picture] = ()
    picture_remarks: Sequence[str] = ()  # which pictures were left out, and why

    @cached_property
    def finished(self) -> list[Run]:
        """Complete, pruned and failed trials."""
        return [r for r in self.runs if r.state.is_finished()]

    @cached_property
    def best(self) -> list[Run]:
        """Complete, feasible trials, lowest loss first."""
        return best_of(self.runs)

    @cached_property
    def default_run(self) -> Run | None:
        """The best feasible trial of the default recipe with the study's fixed values."""
        recipe = self.config.load_method().complete(self.config.fixed)
        return next((r for r in self.best if r.ran(recipe)), None)

    @cached_property
    def status(self) -> Status:
        """Counts, pace, workers and importances; this takes seconds for a large study.

        Raises:
            UserError: the study's URL is not a database URL.
        """
        trials = [r.trial for r in self.runs]
        return status_of(self.config, self.url, trials, self.beats, self.now, 0, self.attrs)

    @cached_property
    def spent(self) -> str | None:
        """The part of the budget that is spent; None if there is none."""
        budget = wishes_in(self.attrs).apply(self.config.budget)
        return spent_budget(budget, [r.trial for r in self.finished])

    @cached_property
    def confirmation(self) -> Confirmation | Remark | None:
        """The stored confirmation; a remark if it can't be read."""
        return read_confirmation(self.attrs)

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What the study's losses depend on."""
        return read_manifest(self.attrs)

    @property
    def has_points(self) -> bool:
        """Whether the challenge's points apply to the study's drawings."""
        # A command line may have named other drawings than the study file.
        measured = str(self.manifest.get("data", "omniglot ")).rpartition(" ")
        is_theirs = measured[0] == "omniglot" and "/" not in measured[2]
        return self.config.instances.has_points and is_theirs
