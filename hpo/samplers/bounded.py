"""Samplers that see a bounded part of a long study's history."""

from __future__ import annotations

import copy
import zlib
from bisect import insort
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from ..trial.ranking import is_feasible, why_passed_over
from .wrapping import WrappingSampler

if TYPE_CHECKING:
    from ..pruners.looks import LookStandings
    from ..pruners.statistics import Standings

RECIPE_KEY = "recipe"  # user attribute of a trial: a digest of its recipe
_BEST_SHARE = 0.25  # share of the best trials in what is shown; the rest is a random sample


class BoundedSampler(WrappingSampler):
    """Shows a sampler a bounded number of finished trials, so that the cost of a sample is bounded.

    TPE's cost grows in proportion to the trials that it sees, GP's with their cube.
    """

    def __init__(self, sampler: optuna.samplers.BaseSampler, history: int, seed: int) -> None:
        super().__init__(sampler)
        self._histories: dict[int, History] = {}  # by study
        self._size = history
        self._seed = seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(self._bounded(study), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.sampler.sample_relative(self._bounded(study), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        bounded = self._bounded(study)
        return self.sampler.sample_independent(bounded, trial, param_name, param_distribution)

    def forget(self) -> None:
        self._histories.clear()
        super().forget()

    def _bounded(self, study: optuna.Study) -> optuna.Study:
        history = self._histories.setdefault(study._study_id, History(self._size, self._seed))
        return cast("optuna.Study", _BoundedStudy(study, history))


class History:
    """The part of a study's finished trials that a sampler sees.

    A pruned trial is shown with its predicted loss on all instances (`Standings.full_loss`), as if
    it were measured.  Otherwise TPE would rank pruned trials behind all complete ones, by partial
    means, and GP would not see them.  In a study with looks the predictions are computed again as
    more trials have both speeds, and a promoted recipe is shown once.

    The part has the best trials, from which TPE makes its density of good values, and a random
    sample that represents all others.  Samples of successive calls overlap, because a trial's draw
    depends on its number alone.
    """

    def __init__(self, size: int, seed: int) -> None:
        from ..pruners.racing import Race  # imported late: SciPy is slow to import

        self._size = size
        self._seed = seed
        self._race = Race()
        self._standings: Standings | LookStandings | None = None
        self._shown: dict[int, FrozenTrial] = {}  # by number
        self._passed_over: set[int] = set()  # numbers of trials that are not shown
        self._by_rank: list[tuple[tuple[bool, float], int, FrozenTrial]] = []
        self._by_draw: list[tuple[int, int, FrozenTrial]] = []
        # One sample asks about ten times, each time with the same list.
        self._last: tuple[Sequence[FrozenTrial], list[FrozenTrial]] = ([], [])

    def part_of(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """The trials to show, out of all trials of the study, ordered by number.

        Running trials are always among them.
        """
        if trials is not self._last[0]:
            self._last = trials, self._choose(trials)
        return self._last[1]

    def _choose(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        standings = self._race.of(trials)
        if self._race.n_looks and standings is not self._standings:
            self._standings = standings
            self._forget(_superseded(trials))
        unfinished = []
        for trial in trials:
            if not trial.state.is_finished():
                unfinished.append(trial)
            elif trial.number not in self._shown and trial.number not in self._passed_over:
                self._add(trial)
        if len(self._by_rank) <= self._size:
            seen = (trial for trial in trials if trial.number not in self._passed_over)
            return [self._shown.get(trial.number, trial) for trial in seen]
        n_best = round(_BEST_SHARE * self._size)
        chosen = {number: trial for _, number, trial in self._by_rank[:n_best]}
        for _, number, trial in self._by_draw:
            if len(chosen) >= self._size:
                break
            chosen[number] = trial
        return sorted([*chosen.values(), *unfinished], key=lambda t: t.number)

    def _forget(self, passed_over: set[int]) -> None:
        """Drop the cache, because predictions of pruned trials have changed."""
        self._shown.clear()
        self._by_rank.clear()
        self._by_draw.clear()
        self._passed_over = passed_over

    def _add(self, trial: FrozenTrial) -> None:
        if why_passed_over(trial) is not None:
            self._passed_over.add(trial.number)
            return
        shown = _as_measured(trial)
        losses = self._race.losses(trial) if shown is not trial else None
        if losses and self._standings is not None:
            shown.values = [self._standings.full_loss(losses)]
        trial = shown
        self._shown[trial.number] = trial
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):  # a failed trial has no loss
            insort(self._by_rank, (_rank(trial), trial.number, trial))
            draw = zlib.crc32(f"{self._seed}:{trial.number}".encode())
            insort(self._by_draw, (draw, trial.number, trial))


def _superseded(trials: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of finished trials whose recipe another trial measured on more instances."""
    longest: dict[object, tuple[int, int]] = {}  # by recipe: instances, number
    measured = {
        trial.number: trial.user_attrs[RECIPE_KEY]
        for trial in trials
        if trial.state.is_finished() and isinstance(trial.user_attrs.get(RECIPE_KEY), str)
    }
    for trial in trials:
        if (recipe := measured.get(trial.number)) is not None:
            mine = len(trial.intermediate_values), trial.number
            longest[recipe] = max(mine, longest.get(recipe, mine))
    return {number for number, recipe in measured.items() if longest[recipe][1] != number}


class _BoundedStudy:
    """A study that shows only a part of its trials."""

    def __init__(self, study: optuna.Study, history: History) -> None:
        self._study = study
        self._history = history

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self._get_trials()

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        # Trials are read once for each new trial, though TPE asks for each group of parameters.
        # They are read in all states, because the history must see every trial.
        trials = self._history.part_of(self._study._get_trials(False, None, use_cache=True))
        chosen = [t for t in trials if states is None or t.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen


def _as_measured(trial: FrozenTrial) -> FrozenTrial:
    """A pruned trial with a predicted loss becomes a complete one; others stay as they are."""
    if trial.state != TrialState.PRUNED or trial.value is None or not is_feasible(trial):
        return trial
    shown = copy.copy(trial)
    shown.state = TrialState.COMPLETE
    return shown


def _rank(trial: FrozenTrial) -> tuple[bool, float]:
    """Sort key: best first, infeasible trials last."""
    return not is_feasible(trial), trial.value if trial.value is not None else float("inf")
