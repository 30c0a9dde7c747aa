"""The strategies that `benchmarks.replay` compares: samplers with pruners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from hpo.pruners.registry import Pruner, make_pruner
from hpo.samplers.registry import Sampler, make_sampler

from .replay_table import Table

BASELINE, DEFAULT = "random, in full", "Optuna's TPE, MedianPruner"


@dataclass(frozen=True)
class Strategy:
    """How to search.

    ``estimates`` gives pruned trials the loss that they probably have, else their mean so far.
    ``means``: reports are means of the losses so far, else the losses themselves.
    ``by_optuna``: the search is Optuna's own, as its documentation has it.
    """

    sampler: Callable[[int], optuna.samplers.BaseSampler]
    pruner: Callable[[], optuna.pruners.BasePruner]
    estimates: bool = True
    means: bool = True
    by_optuna: bool = False


def strategies(alphas: Sequence[float], table: Table) -> dict[str, Strategy]:
    """By name: the baselines, ours, ours with parts left out, and ours with priors."""
    by_quality = np.argsort(table.quality)
    third = len(table) // 3

    def ours(name: str) -> Callable[[int], optuna.samplers.BaseSampler]:
        return lambda seed: make_sampler(Sampler.model_validate({"name": name}), seed)

    def racing(alpha: float) -> Callable[[], optuna.pruners.BasePruner]:
        return lambda: make_pruner(Pruner(alpha=alpha))

    def near(rows: Sequence[int]) -> Callable[[int], optuna.samplers.BaseSampler]:
        """TPE with a prior around one of these recipes; which one, the seed says."""
        likely = [table.params[row] for row in rows]
        return lambda seed: make_sampler(Sampler(prior=likely[7 * seed % len(likely)]), seed)

    middle = alphas[len(alphas) // 2]
    found = {
        BASELINE: Strategy(ours("random"), optuna.pruners.NopPruner),
        DEFAULT: Strategy(
            lambda seed: optuna.samplers.TPESampler(seed=seed),
            optuna.pruners.MedianPruner,
            estimates=False,
        ),
        "TPE, Optuna's Hyperband": Strategy(
            lambda seed: optuna.samplers.TPESampler(seed=seed),
            lambda: optuna.pruners.HyperbandPruner(max_resource=len(table.instances)),
            estimates=False,
            by_optuna=True,
        ),
        "TPE, Optuna's WilcoxonPruner": Strategy(
            lambda seed: optuna.samplers.TPESampler(seed=seed),
            optuna.pruners.WilcoxonPruner,
            estimates=False,
            means=False,
            by_optuna=True,
        ),
        "TPE, in full": Strategy(ours("tpe"), optuna.pruners.NopPruner),
        f"random, racing {middle:g}": Strategy(ours("random"), racing(middle)),
        f"TPE told partial means, racing {middle:g}": Strategy(
            lambda seed: optuna.samplers.TPESampler(multivariate=True, group=True, seed=seed),
            racing(middle),
            estimates=False,
        ),
        f"GP, racing {middle:g}": Strategy(ours("gp"), racing(middle)),
        f"TPE, prior at one of the best 3 to 10, racing {middle:g}": Strategy(
            near(by_quality[2:10].tolist()), racing(middle)
        ),
        f"TPE, prior in the worst third, racing {middle:g}": Strategy(
            near(by_quality[-third:].tolist()), racing(middle)
        ),
    }
    return found | {f"TPE, racing {a:g}": Strategy(ours("tpe"), racing(a)) for a in alphas}


class Running:
    """A trial that runs in Optuna's storage, where some pruners keep what they decide by."""

    def __init__(self, study: optuna.Study, table: Table, row: int) -> None:
        template = create_trial(
            state=TrialState.RUNNING,
            params=table.params[row],
            distributions=table.distributions_of(row),
        )
        trial_id = study._storage.create_new_trial(study._study_id, template)
        self._study, self._trial = study, optuna.Trial(study, trial_id)

    def is_pruned(self, step: int, value: float) -> bool:
        """Report a value; whether the pruner would end the trial."""
        self._trial.report(value, step)
        return self._trial.should_prune()

    def tell(self, value: float, pruned: bool) -> None:
        """End the trial with a value, or as pruned: Optuna then takes its last report."""
        if pruned:
            self._study.tell(self._trial, state=TrialState.PRUNED)
        else:
            self._study.tell(self._trial, value)
