"""What a worker tells the person who started it."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from finetune.recipe import Recipe

from .config import StudyConfig
from .space import recipe_of
from .storage import shown


def show_trial(study: optuna.Study, trial: FrozenTrial) -> None:
    """One line about a trial that has just ended."""
    measured = trial.user_attrs.get("instances", [])
    seconds = sum(m["seconds"] for m in measured)
    if trial.state == TrialState.COMPLETE:
        outcome = f"loss {trial.value:.4f} ± {trial.user_attrs['standard_error']:.4f}"
    else:
        outcome = f"{trial.state.name.lower()}: {trial.user_attrs.get('why_pruned', 'no reason')}"
    print(f"trial {trial.number}: {outcome}; {len(measured)} calls, {seconds:.0f} s", flush=True)


def best_trial(study: optuna.Study, limit_s: float) -> FrozenTrial | None:
    """The complete trial of lowest loss whose calls kept the limit; None if there is none."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    feasible = [t for t in complete if t.user_attrs["longest_call_s"] <= limit_s]
    return min(feasible, key=lambda t: t.value or 0.0, default=None)


def changed_values(recipe: Recipe) -> dict[str, Any]:
    """What the recipe has otherwise than the default."""
    default = Recipe().to_dict()
    return {k: v for k, v in recipe.to_dict().items() if v != default[k]}


def print_summary(study: optuna.Study, config: StudyConfig, url: str) -> None:
    """What came out, and what to do next."""
    trials = study.get_trials(deepcopy=False)
    counts = {state: sum(t.state == state for t in trials) for state in TrialState}
    print(
        f"\n{config.name}: {counts[TrialState.COMPLETE]} trials complete, "
        f"{counts[TrialState.PRUNED]} pruned, {counts[TrialState.FAIL]} failed"
    )
    best = best_trial(study, config.limit_s)
    if best is None:
        print(f"no trial is complete with every call within {config.limit_s:g} s")
    else:
        print(
            f"best: trial {best.number}, mean loss {best.value:.4f} "
            f"± {best.user_attrs['standard_error']:.4f} over {len(best.user_attrs['instances'])} "
            f"instances, longest call {best.user_attrs['longest_call_s']:.1f} s"
        )
        first = trials[0]
        if first.state == TrialState.COMPLETE and first.number != best.number and first.value:
            print(
                f"  {100 * (1 - (best.value or 0.0) / first.value):.1f} % below the first recipe, "
                f"trial 0 ({first.value:.4f})"
            )
        for name, value in changed_values(recipe_of(best)).items():
            text = f"{value:.4g}" if isinstance(value, float) else value
            print(f"  {name:<22}{text}")
    print("next:")
    print(
        f"  python -m hpo.worker --study {config.name}   # more trials; as many shells as you like"
    )
    print(f"  optuna-dashboard {shown(url)}   # the trials in a browser")
