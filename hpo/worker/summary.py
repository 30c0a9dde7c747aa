"""What a worker tells the person who started it, at the end."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from ..formatting import cost_of_answer
from ..study.config import StudyConfig
from ..trial.ranking import best_trial, describe_loss
from ..trial.recipe import changed_values
from ..trial.run import run_of


def print_summary(study: optuna.Study, config: StudyConfig, asked: str) -> None:
    """What came out, and what to do next; ``asked`` is the study as the person named it."""
    trials = study.get_trials(deepcopy=False)
    counts = {state: sum(t.state == state for t in trials) for state in TrialState}
    print(
        f"\n{config.name}: {counts[TrialState.COMPLETE]} trials complete, "
        f"{counts[TrialState.PRUNED]} pruned, {counts[TrialState.FAIL]} failed"
    )
    best = best_trial(study)
    if best is None:
        print(f"no trial is complete with every call within {config.feasible_s:g} s")
    else:
        run = run_of(best)
        n = len(run.calls)
        print(
            f"best: trial {best.number}, mean loss {describe_loss(best)} "
            f"over {n} instance{'' if n == 1 else 's'}, "
            f"longest call {run.longest_s or 0.0:.1f} s"
        )
        if run.cost is not None:
            print(f"  cost of an answer: {cost_of_answer(run.cost)}")
        first = trials[0]
        if first.state == TrialState.COMPLETE and first.number != best.number and first.value:
            print(
                f"  {100 * (1 - (best.value or 0.0) / first.value):.1f} % below the first recipe, "
                f"trial 0 ({first.value:.4f})"
            )
        recipe = run.recipe
        for name, value in changed_values(recipe).items() if recipe else ():
            text = f"{value:.4g}" if isinstance(value, float) else value
            print(f"  {name:<22}{text}")
    print("next:")
    print(f"  python -m hpo.worker --study {asked}   # more trials; --workers 2 for two")
    print(f"  python -m hpo.status --study {asked}   # counts, best trials, pace")
    print(f"  python -m hpo.confirm --study {asked}   # the best few again, on unseen runes")
    print(f"  python -m hpo.export --study {asked} --out finetune.py   # the best as one file")
    print(f"  python -m hpo.report --study {asked} --out report.html   # all of it as one page")
    print(f"  python -m hpo.dashboard --study {asked} --open   # the trials in a browser")
