"""What a process knows of a study's trials: the finished ones for good, of the others little."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection

from optuna.trial import FrozenTrial, TrialState

from .tables import FINISHED, Database


class TrialCache:
    """Reads each finished trial once.

    One short statement per look tells which trials have finished since the last.  It is enough
    to look among those that had not finished and above the highest id seen: a study's trials are
    made one at a time, so ids come to be seen in their order.
    """

    def __init__(self, database: Database, study_id: int) -> None:
        self._database = database
        self._study_id = study_id
        self._finished: dict[int, FrozenTrial] = {}  # by id
        self._unfinished: set[int] = set()
        self._running: dict[int, FrozenTrial] = {}  # unfinished ones that have parameters
        self._highest_id = -1
        self._lists: dict[frozenset[TrialState], list[FrozenTrial]] = {}

    def get(self, trial_id: int) -> FrozenTrial | None:
        """A finished trial that is known already."""
        return self._finished.get(trial_id)

    def trials(self, states: Collection[TrialState]) -> list[FrozenTrial]:
        """The study's trials in these states, by their numbers, as they are now."""
        self._look()
        finished = self._listed(frozenset(states) & set(FINISHED))
        if set(states) <= set(FINISHED):
            return list(finished)  # pruners ask this after every report
        trials = list(finished)
        for trial in self._database.whole_trials(self._unfinished):
            if trial.state in states:
                insort(trials, trial, key=_number)
        return trials

    def for_sampling(self) -> list[FrozenTrial]:
        """All trials with what samplers go by: of those that run, the parameters.

        A trial gets all its parameters at once, so one that has some is not read again until it
        is finished; its reports and attributes may be old.
        """
        self._look()
        unread = [i for i in self._unfinished if i not in self._running]
        for trial in self._database.whole_trials(unread):
            if trial.params:
                self._running[trial._trial_id] = trial
        trials = list(self._listed(frozenset(FINISHED)))
        for trial_id, trial in list(self._running.items()):
            if trial_id in self._unfinished:
                insort(trials, trial, key=_number)
            else:
                del self._running[trial_id]
        return trials

    def _look(self) -> None:
        states = self._database.states_of(self._study_id, self._unfinished, self._highest_id)
        ended = [trial_id for trial_id, state in states if state.is_finished()]
        self._unfinished = {trial_id for trial_id, state in states if not state.is_finished()}
        if states:
            self._highest_id = max(self._highest_id, *(trial_id for trial_id, _ in states))
        if ended:
            for trial in self._database.whole_trials(ended):
                self._finished[trial._trial_id] = trial
                for wanted, known in self._lists.items():
                    if trial.state in wanted:
                        insort(known, trial, key=_number)

    def _listed(self, states: frozenset[TrialState]) -> list[FrozenTrial]:
        if states not in self._lists:
            chosen = [t for t in self._finished.values() if t.state in states]
            self._lists[states] = sorted(chosen, key=_number)
        return self._lists[states]


def _number(trial: FrozenTrial) -> int:
    return trial.number
