"""``--dry-run``: print what a worker would do, without creating anything."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..clock.plan import Clock
from ..clock.profile import NotTimedError
from ..problem.base import Instance, Method, Values
from ..storage.url import shown
from ..study.config import StudyConfig
from ..study.space import random_values


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
    method = config.load_method()
    (recipe,) = random_values(config.space, config.fixed, method, 1, config.sampler.seed)
    print("a recipe from the space:", json.dumps(recipe, indent=2))
    clock = config.load_clock()
    if clock is not None:
        _print_plan(clock, method, recipe, instances[0])
    print("nothing was created")


def _print_plan(clock: Clock, method: Method, recipe: Values, instance: Instance) -> None:
    where = f"on {instance.label}, by the clock of {clock.name}"
    try:
        plan = clock.plan(method, recipe, instance)
    except NotTimedError as error:
        print(f"its call {where} can't be planned: {error}")
    else:
        print(f"its call {where}: {plan.steps} steps, {plan.seconds:.1f} s there")
