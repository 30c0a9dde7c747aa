"""Importance of each parameter for being among the best trials, by PED-ANOVA."""

from __future__ import annotations

import warnings
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ..trial.stored import finite

NEEDED = 20  # least number of complete trials
_TOP_SHARE = 0.1  # share of the best trials, which are compared with all trials
_TOP_LEAST = 5  # least number of best trials; with fewer the method tells little
_LARGEST_SAMPLE = 300  # most trials; the time grows with their number
_RESAMPLES = 30


class ImportanceError(Exception):
    """Importances can't be estimated; the message says why."""


@dataclass(frozen=True)
class Importance:
    """A parameter's share of the importance of all parameters, from 0 to 1."""

    name: str
    share: float
    standard_error: float  # by bootstrap over trials


def importances(trials: Sequence[FrozenTrial], seed: int = 0) -> tuple[Importance, ...]:
    """Importances of all parameters of the complete trials, most important first.

    A parameter that only some trials have is judged by those trials: PED-ANOVA compares its values
    among the best of them with its values among all of them, weighted by the share of best trials
    that have it.  The standard error is that of a bootstrap over trials, which ignores that a
    sampler learns from earlier trials.  Shares are biased upward by about their standard error, so
    a share that is no larger than its error may well be zero.

    Args:
        seed: seed of the bootstrap, and of the choice of trials if there are too many.

    Raises:
        ImportanceError: there are fewer than `NEEDED` complete trials with a finite loss, all
            losses are equal, no parameter varies, or Optuna fails on the trials.
    """
    usable = [t for t in trials if t.state == TrialState.COMPLETE and finite(t.value) is not None]
    if len(usable) < NEEDED:
        raise ImportanceError(
            f"{NEEDED - len(usable)} more complete trials are needed, of {NEEDED}"
        )
    if len({t.value for t in usable}) == 1:
        raise ImportanceError("all complete trials have the same loss")
    rng = np.random.default_rng(seed)
    if len(usable) > _LARGEST_SAMPLE:
        chosen = rng.choice(len(usable), _LARGEST_SAMPLE, replace=False)
        usable = [usable[i] for i in sorted(chosen)]
    sample = _Sample()
    names = sorted({name for t in usable for name in t.params})
    try:
        shares = sample.shares(usable, names)
        resampled = [
            sample.shares([usable[i] for i in rng.integers(len(usable), size=len(usable))], names)
            for _ in range(_RESAMPLES)
        ]
    except Exception as error:  # a report must not fail because of this part
        raise ImportanceError(f"Optuna can't judge them: {error!r}") from error
    if not shares.any():
        raise ImportanceError("no parameter varies among the complete trials")
    errors = np.std(resampled, axis=0, ddof=1)
    found = [
        Importance(name, float(share), float(error))
        for name, share, error in zip(names, shares, errors, strict=True)
    ]
    return tuple(sorted(found, key=lambda i: (-i.share, i.name)))


class _Sample(optuna.Study):
    """A study made of given trials: a trial may occur twice, and none is copied."""

    def __init__(self) -> None:
        storage = InMemoryStorage()
        storage.create_new_study([StudyDirection.MINIMIZE], "sample")
        super().__init__("sample", storage)
        self._drawn: list[FrozenTrial] = []

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return self._drawn

    def shares(self, drawn: list[FrozenTrial], names: Sequence[str]) -> np.ndarray:
        """Importances as shares of their sum; zeros if no parameter has any."""
        self._drawn = drawn
        top = max(_TOP_SHARE, _TOP_LEAST / len(drawn))
        with warnings.catch_warnings():
            # Warnings of few trials with a parameter, and of `normalize` being experimental.
            # Optuna's normalization would make all parameters equal if none matters.
            warnings.simplefilter("ignore")
            found = get_param_importances(
                self, evaluator=PedAnovaImportanceEvaluator(target_quantile=top), normalize=False
            )
        importance = np.array([found.get(name, 0.0) for name in names])
        total = importance.sum()
        return importance / total if total > 0 else importance
