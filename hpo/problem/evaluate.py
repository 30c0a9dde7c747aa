"""The timed call on one instance, as trials and confirmations make it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from finetune.adapt import AdaptationError, Adapted, Progress
from finetune.data.runes import NEW_LABEL
from finetune.machine.device import training_device
from finetune.recipe import Recipe
from finetune.scoring.cost import measure_cost
from finetune.scoring.estimators import LossTable, NoiseTable, estimate
from finetune.side_by_side import Task, adapt_together

from ..study.config import StudyConfig
from ..trial.outcome import Outcome, TrialEndedError
from .instances import Instance

_COST_SHARE, _COST_S = 0.05, 1.0  # of a call's seconds, and at most: to measure an answer's cost


@dataclass(frozen=True)
class Called:
    """What came out of a call: losses on unseen drawings, and what it took."""

    losses: LossTable
    seconds: float  # of adapting alone
    steps: int
    cost: float  # CPU time of an answer, over the plain network's
    model: nn.Module  # the adapted network, where it was scored


def timed_call(
    config: StudyConfig,
    recipe: Recipe,
    instance: Instance,
    table_seed: int,
    on_step: Callable[[Progress], None],
) -> Called:
    """Adapt the instance's network to its drawings and score it on its other drawings.

    Args:
        table_seed: of the table of times and noises.
        on_step: called after each step; may raise.

    Raises:
        TrialEndedError: it was stopped at the limit, or a loss is not finite.
    """

    return timed_calls(config, recipe, [instance], table_seed, lambda _, p: on_step(p))[0]


def timed_calls(
    config: StudyConfig,
    recipe: Recipe,
    instances: Sequence[Instance],
    table_seed: int,
    on_step: Callable[[int, Progress], None],
) -> list[Called]:
    """`timed_call` of several instances; on a GPU side by side, each in the time of all.

    ``on_step`` is also told which of the instances made the step.
    """
    label = " and ".join(instance.label for instance in instances)

    def step(index: int, progress: Progress) -> None:
        on_step(index, progress)
        if progress.elapsed_s > config.limit_s:
            raise TrialEndedError(
                Outcome.OUT_OF_TIME,
                f"stopped on {label} after {progress.elapsed_s:.1f} s, at step "
                f"{progress.step} of {recipe.steps}; the limit is {config.limit_s:g} s",
            )

    tasks = [Task(i.pretrained, i.split.train, replace(recipe, seed=i.seed)) for i in instances]
    try:
        adapted = adapt_together(tasks, step)
    except AdaptationError as error:
        raise TrialEndedError(Outcome.NOT_FINITE, f"{label}: {error}") from error
    return [
        _scored(config, instance, table_seed, each)
        for instance, each in zip(instances, adapted, strict=True)
    ]


def _scored(config: StudyConfig, instance: Instance, table_seed: int, adapted: Adapted) -> Called:
    # Evaluated where it was trained: it comes back to where the pretrained network is.
    home = next(adapted.model.parameters()).device
    model = adapted.model.to(training_device(home))
    table = noise_table(config, instance, table_seed)
    losses = estimate(model, instance.split.test, NEW_LABEL, table)
    if not math.isfinite(losses.mean):
        reason = f"{instance.label}: the loss on unseen drawings is {losses.mean}"
        raise TrialEndedError(Outcome.NOT_FINITE, reason)
    seconds = round(adapted.seconds, 3)
    cost = _cost(model, instance, seconds)
    return Called(losses, seconds, adapted.steps, cost, model)


def _cost(model: nn.Module, instance: Instance, seconds: float) -> float:
    """`finetune.scoring.cost.Cost.ratio`, in little time beside a call of so many ``seconds``."""
    budget_s = min(_COST_S, _COST_SHARE * seconds)
    test = instance.split.test
    cost = measure_cost(model, instance.pretrained, test, NEW_LABEL, budget_s=budget_s)
    return round(cost.ratio, 3)


def noise_table(config: StudyConfig, instance: Instance, seed: int) -> NoiseTable:
    """The times and noises on which the instance's loss is measured, whatever the recipe."""
    e = config.estimator
    return NoiseTable(len(instance.split.test), e.strata, e.replicates, seed, instance.label)


def machine() -> dict[str, object]:
    """What losses depend on beside the recipe, to the last bit."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"device": gpu or "cpu", "threads": torch.get_num_threads(), "torch": torch.__version__}
