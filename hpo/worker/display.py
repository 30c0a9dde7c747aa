"""A worker's progress bars: one for the study, one for its trial."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from ..process.logging import no_bars
from ..trial.ranking import best_trials, describe_loss

_REFRESH_S = 1.0


class Display:
    """Two tqdm bars on a terminal; none elsewhere or with ``--quiet``."""

    def __init__(self, study_name: str, budget: int | None, finished: int) -> None:
        self._shared = {"file": sys.stderr, "disable": no_bars(), "dynamic_ncols": True}
        self._study = tqdm(
            total=budget,
            initial=finished,
            desc=study_name,
            unit="trial",
            position=0,
            **self._shared,
        )
        self._trial: tqdm | None = None  # None until there is a trial to show
        self._title, self._shown_at = "", 0.0

    @property
    def is_on(self) -> bool:
        return not self._study.disable

    def show_study(self, trials: Sequence[FrozenTrial]) -> None:
        """Update the study's bar."""
        if not self.is_on:
            return
        count = {state: sum(t.state == state for t in trials) for state in TrialState}
        finished = sum(n for state, n in count.items() if state.is_finished())
        parts = [f"{count[TrialState.PRUNED]} pruned"]
        if count[TrialState.FAIL]:
            parts.append(f"{count[TrialState.FAIL]} failed")
        if best := best_trials(trials, 1):
            parts.append(f"best {describe_loss(best[0])}")
        self._study.set_postfix_str(", ".join(parts), refresh=False)
        self._study.update(finished - self._study.n)
        self._study.refresh()

    def show_trial(self, title: str, share: float = 0.0, loss: float | None = None) -> None:
        """Update the trial's bar; cheap enough to be called after every step."""
        now = time.monotonic()
        if not self.is_on or (title == self._title and now - self._shown_at < _REFRESH_S):
            return
        self._title, self._shown_at = title, now
        if self._trial is None:
            self._trial = tqdm(
                total=100, position=1, leave=False, bar_format=_TRIAL_FORMAT, **self._shared
            )
        self._trial.set_description_str(title, refresh=False)
        self._trial.set_postfix_str("" if loss is None else f"loss {loss:.3f}", refresh=False)
        self._trial.n = round(100 * share)
        self._trial.refresh()
        self._study.refresh()  # its elapsed time goes on

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        if self._trial is not None:
            self._trial.close()
        self._study.close()


_TRIAL_FORMAT = "  {desc} {bar:20} {n_fmt} %{postfix}"
