"""A process's cache of a study's trials: finished ones for good, unfinished ones in part."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from .optuna_internals import id_of
from .tables import FINISHED, states_of, trials_of

Read = Callable[[Callable[[sa.Connection], Any]], Any]


class TrialCache:
    """Reads each finished trial once.

    Each query first asks which trials have finished since the last one. It asks only for ids that
    were unfinished then, and for ids above the highest one seen: a study's trials are created one
    at a time, so their ids are in order.

    Args:
        read: runs a function on a connection to the database.
    """

    def __init__(self, read: Read, study_id: int) -> None:
        self._read = read
        self._study_id = study_id
        self._finished: dict[int, FrozenTrial] = {}  # by id
        self._unfinished: set[int] = set()
        self._running: dict[int, FrozenTrial] = {}  # unfinished ones that have parameters
        self._highest_id = -1
        self._lists: dict[frozenset[TrialState], list[FrozenTrial]] = {}

    def get(self, trial_id: int) -> FrozenTrial | None:
        """A finished trial, if it is in the cache."""
        return self._finished.get(trial_id)

    def trials(self, states: Collection[TrialState]) -> list[FrozenTrial]:
        """The study's current trials in these states, ordered by number."""
        self._look()
        finished = self._listed(frozenset(states) & set(FINISHED))
        if set(states) <= set(FINISHED):
            return list(finished)  # pruners ask for these after every report
        trials = list(finished)
        for trial in self._whole(self._unfinished):
            if trial.state in states:
                insort(trials, trial, key=_number)
        return trials

    def for_sampling(self) -> list[FrozenTrial]:
        """All trials, as far as samplers need them.

        A running trial gets all its parameters at once. So one that has parameters is not read
        again until it is finished, and its reports and attributes may be out of date.
        """
        self._look()
        unread = [i for i in self._unfinished if i not in self._running]
        for trial in self._whole(unread):
            if trial.params:
                self._running[id_of(trial)] = trial
        trials = list(self._listed(frozenset(FINISHED)))
        for trial_id, trial in list(self._running.items()):
            if trial_id in self._unfinished:
                insort(trials, trial, key=_number)
            else:
                del self._running[trial_id]
        return trials

    def _look(self) -> None:
        seen = self._unfinished, self._highest_id
        states = self._read(lambda c: states_of(c, self._study_id, *seen))
        ended = [trial_id for trial_id, state in states if state.is_finished()]
        self._unfinished = {trial_id for trial_id, state in states if not state.is_finished()}
        if states:
            self._highest_id = max(self._highest_id, *(trial_id for trial_id, _ in states))
        if ended:
            for trial in self._whole(ended):
                self._finished[id_of(trial)] = trial
                for wanted, known in self._lists.items():
                    if trial.state in wanted:
                        insort(known, trial, key=_number)

    def _whole(self, ids: Collection[int]) -> list[FrozenTrial]:
        return self._read(lambda c: trials_of(c, ids)) if ids else []

    def _listed(self, states: frozenset[TrialState]) -> list[FrozenTrial]:
        if states not in self._lists:
            chosen = [t for t in self._finished.values() if t.state in states]
            self._lists[states] = sorted(chosen, key=_number)
        return self._lists[states]


def _number(trial: FrozenTrial) -> int:
    return trial.number
