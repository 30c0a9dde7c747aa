"""Instances that no trial was measured on, in the order in which recipes meet on them."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass

from finetune.canvas import Resize
from finetune.data.runes import RuneSource
from finetune.model.checkpoints import list_networks

from ..errors import UserError
from ..study.config import StudyConfig
from .instances import Instance, load_instances


@dataclass(frozen=True)
class Unseen:
    """An instance with the resize that its drawings went through."""

    instance: Instance
    resize: Resize

    @property
    def label(self) -> str:
        """Its name in attributes; unique in a confirmation."""
        return f"{self.instance.label} {self.resize}"


def load_unseen(config: StudyConfig, source: RuneSource) -> list[Unseen]:
    """What ``[confirm]`` asks for, each rune with each split, seed and resize.

    Successive instances have different runes, and splits and resizes take turns, so that the
    first few are a fair sample of all.

    Raises:
        UserError: a rune or network is unknown, or trials were measured on one of the instances.
    """
    asked, study = config.confirm, config.instances
    for rune in asked.runes:
        if rune not in source.runes:
            known = ", ".join(source.runes)
            raise UserError(f"confirm.runes names {rune!r}; {source.name} has {known}")
    paths = [path.stem for path in list_networks(study.pretrained)]
    for name in asked.networks:
        if name not in paths:
            raise UserError(f"confirm.networks names {name!r}; there are {', '.join(paths)}")
    held_in = set(study.runes or source.runes)
    runes = asked.runes or tuple(r for r in source.runes if r not in held_in) or source.runes
    again = [rune for rune in runes if rune in held_in]
    splits = asked.splits or (_others(study.splits) if again else study.splits)
    # Whatever the network and the seed: these drawings had their say in the search.
    if again and (seen := sorted(set(splits) & set(study.splits))):
        other = _others(study.splits)[0]
        raise UserError(
            f"confirm asks for {again[0]} with split {seen[0]}, which trials were measured on; "
            f"write other runes, or splits that the study does not use, such as [{other}]"
        )
    seeds = asked.seeds or (_others(study.seeds) if again else study.seeds)
    update = {
        "runes": runes,
        "splits": splits,
        "seeds": seeds,
        "networks": asked.networks or study.networks,
    }
    resizes = asked.resizes or (study.resize,)
    loaded = {
        (i.rune, i.split_seed, i.seed, resize): Unseen(i, resize)
        for resize in resizes
        for i in load_instances(study.model_copy(update={**update, "resize": resize}), source)
    }
    ways = list(itertools.product(splits, seeds, resizes))
    # As in a Latin square: in each pass every rune comes once, and each in another way.
    return [
        loaded[(rune, *ways[(turn + i) % len(ways)])]
        for turn in range(len(ways))
        for i, rune in enumerate(runes)
    ]


def _others(used: Collection[int]) -> tuple[int, ...]:
    """The smallest numbers that are not used, as many as are."""
    unused = (number for number in itertools.count() if number not in used)
    return tuple(itertools.islice(unused, len(used)))
