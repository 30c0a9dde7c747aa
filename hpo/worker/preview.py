"""``--dry-run``: what a worker would do, without creating anything."""

from __future__ import annotations

import json
from collections.abc import Sequence

import optuna

from ..problem.base import Instance
from ..storage.url import shown
from ..study.config import StudyConfig
from ..study.space import sample_values


def print_preview(
    config: StudyConfig, instances: Sequence[Instance], url: str, manifest: dict[str, str]
) -> None:
    """Print the resolved study, its manifest, and one recipe sampled at random from its space."""
    resolved = config.model_dump(mode="json", exclude_none=True)
    resolved["storage"] = shown(url)
    print(json.dumps(resolved, indent=2))
    print("manifest:", json.dumps(manifest, indent=2))
    print("instances, in this order:")
    for number, instance in enumerate(instances, start=1):
        print(f"  {number}. {instance.label} from {instance.network}")
    sampler = optuna.samplers.RandomSampler(seed=config.sampler.seed)
    trial = optuna.create_study(sampler=sampler).ask()
    recipe = sample_values(trial, config.space, config.fixed, config.load_method())
    print("a recipe from the space:", json.dumps(recipe, indent=2))
    print("nothing was created")
