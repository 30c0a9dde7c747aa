"""A trial: one recipe, measured instance by instance with the timed call."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
import torch
from tqdm import tqdm

from finetune.adapt import AdaptationError, Progress, adapt
from finetune.data import NEW_LABEL, RuneSource, Split, split_drawings
from finetune.errors import UserError
from finetune.networks import list_networks, load_network
from finetune.recipe import Recipe, RecipeError
from finetune.validation import NoiseTable, estimate

from .config import Instances, StudyConfig
from .space import sample_recipe


@dataclass(frozen=True)
class Instance:
    """What one call is measured on."""

    rune: str
    split_seed: int
    network: str
    pretrained: torch.nn.Module
    split: Split

    @property
    def label(self) -> str:
        return f"{self.rune}/{self.split_seed}"


@dataclass(frozen=True)
class Measured:
    """One instance's outcome, as it is stored with the trial."""

    instance: str
    loss: float
    standard_error: float
    seconds: float
    steps: int


def load_instances(config: Instances, source: RuneSource) -> list[Instance]:
    """Every rune of every split; network i goes with rune i, counted round.

    Raises:
        UserError: networks are missing, or a rune is unknown.
    """
    unknown = [rune for rune in config.runes if rune not in source.runes]
    if unknown:
        raise UserError(
            f"instances.runes names {unknown[0]!r}; {source.name} has {', '.join(source.runes)}"
        )
    paths = list_networks(config.pretrained)
    networks = [load_network(path) for path in paths]
    return [
        Instance(
            rune=rune,
            split_seed=seed,
            network=paths[i % len(paths)].stem,
            pretrained=networks[i % len(paths)],
            split=split_drawings(source.drawings(rune, config.resize), seed),
        )
        for seed in config.splits
        for i, rune in enumerate(config.runes or source.runes)
    ]


class Objective:
    """What `optuna.Study.optimize` minimises: the mean loss over the instances.

    After each instance the mean so far is reported under the number of instances, so that a
    pruner compares trials on the same ones.  A call over the limit makes the trial infeasible.
    """

    def __init__(self, config: StudyConfig, instances: Sequence[Instance]) -> None:
        self.config = config
        self.instances = instances

    def __call__(self, trial: optuna.Trial) -> float:
        try:
            return self._run(trial)
        except KeyboardInterrupt:
            trial.study.enqueue_trial(trial.params)
            trial.set_user_attr("why_pruned", "interrupted; its parameters are queued again")
            print(f"trial {trial.number} is queued again; start a worker to go on")
            raise

    def _run(self, trial: optuna.Trial) -> float:
        try:
            recipe = sample_recipe(trial, self.config.space, self.config.fixed)
        except RecipeError as error:
            trial.set_user_attr("why_pruned", str(error))
            raise optuna.TrialPruned(str(error)) from error
        trial.set_user_attr("recipe", json.dumps(recipe.to_dict()))
        measured: list[Measured] = []
        try:
            return self._race(trial, recipe, measured)
        finally:
            # Of a pruned trial too: samplers put one without the constraint behind all others.
            if measured:
                longest = max(m.seconds for m in measured)
                trial.set_constraint("seconds over the limit", longest - self.config.limit_s)
                trial.set_user_attr("longest_call_s", longest)

    def _race(self, trial: optuna.Trial, recipe: Recipe, measured: list[Measured]) -> float:
        """Measure instance after instance, into ``measured``, until the last or a prune."""
        for number, instance in enumerate(self.instances, start=1):
            measured.append(self._measure(trial, recipe, instance, number))
            mean = sum(m.loss for m in measured) / number
            trial.report(mean, number)
            trial.set_user_attr("instances", [m.__dict__ for m in measured])
            if number < len(self.instances) and trial.should_prune():
                trial.set_user_attr("why_pruned", f"weak after {number} instances")
                raise optuna.TrialPruned
        variance = sum(m.standard_error**2 for m in measured)
        trial.set_user_attr("standard_error", math.sqrt(variance) / len(measured))
        return mean

    def _measure(
        self, trial: optuna.Trial, recipe: Recipe, instance: Instance, number: int
    ) -> Measured:
        title = f"trial {trial.number}, {instance.label} ({number}/{len(self.instances)})"
        with tqdm(total=100, desc=title, unit="%", leave=False) as bar:

            def show(progress: Progress) -> None:
                bar.update(round(100 * progress.share) - bar.n)
                bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)

            try:
                adapted = adapt(instance.pretrained, instance.split.train, recipe, show)
            except AdaptationError as error:
                trial.set_user_attr("why_pruned", str(error))
                raise optuna.TrialPruned(str(error)) from error
        e = self.config.estimator
        test = instance.split.test
        table = NoiseTable(len(test), e.strata, e.replicates, e.seed)
        losses = estimate(adapted.model, test, NEW_LABEL, table)
        return Measured(
            instance=instance.label,
            loss=losses.mean,
            standard_error=losses.standard_error,
            seconds=round(adapted.seconds, 3),
            steps=adapted.steps,
        )
