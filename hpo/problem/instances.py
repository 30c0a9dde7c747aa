"""Instances of (rune, split, network, seed): those of trials, and those of confirmations."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from finetune.canvas import Resize
from finetune.data.runes import RuneSource, Split
from finetune.model.checkpoints import list_networks, load_network
from finetune.model.groups import group_of
from finetune.recipe import GROUPS

from ..errors import UserError
from .settings import Confirm, Instances


@dataclass(frozen=True)
class RuneInstance:
    """An instance of `RuneProblem`, on which one call is measured."""

    rune: str
    split_seed: int
    network: str
    seed: int  # seed of the call's random numbers
    pretrained: nn.Module
    split: Split
    resize: Resize | None = None  # how drawings were resized; None: the study's way
    speed: float | None = None  # factor on the reference machine's speed; None: the study's

    @property
    def label(self) -> str:
        """Name in attributes and plots; unique among the instances of a problem."""
        speed = "" if self.speed is None else f"*{self.speed:g}"
        return self.place + speed + (f" {self.resize}" if self.resize else "")

    @property
    def place(self) -> str:
        """The label without resize and speed; the noise of the evaluation depends on this part."""
        return f"{self.rune}/{self.split_seed}" + (f"/{self.seed}" if self.seed else "")

    @cached_property
    def group_sizes(self) -> dict[str, int]:
        """Number of the network's parameters in each of `finetune.recipe.GROUPS`."""
        sizes = dict.fromkeys(GROUPS, 0)
        for name, parameter in self.pretrained.named_parameters():
            sizes[group_of(name, parameter)] += parameter.numel()
        return sizes


def load_instances(config: Instances, source: RuneSource) -> list[RuneInstance]:
    """The instances of trials: every rune of every split with every seed at every speed.

    Network i goes with rune i, starting again when there are fewer networks than runes.

    Raises:
        UserError: networks are missing, a rune or network is unknown, or a rune has too few
            drawings.
    """
    _check_runes("instances", config.runes, source)
    paths = {path.stem: path for path in list_networks(config.pretrained)}
    _check_networks("instances", config.networks, paths)
    networks = [(name, load_network(paths[name])) for name in config.networks or paths]
    return [
        RuneInstance(
            rune=rune,
            split_seed=split_seed,
            network=networks[i % len(networks)][0],
            seed=seed,
            pretrained=networks[i % len(networks)][1],
            split=source.split(rune, config.resize, split_seed, config.train),
            speed=speed,
        )
        for speed in config.speeds or (None,)
        for seed in config.seeds
        for split_seed in config.splits
        for i, rune in enumerate(config.runes or source.runes)
    ]


def load_held_out(study: Instances, asked: Confirm, source: RuneSource) -> list[RuneInstance]:
    """The instances of ``[confirm]``: each rune with each split, seed and resize.

    Successive instances have different runes, and splits and resizes take turns, so the first few
    are a balanced sample of all.

    Raises:
        UserError: a rune or network is unknown, or trials were measured on one of the instances.
    """
    _check_runes("confirm", asked.runes, source)
    paths = [path.stem for path in list_networks(study.pretrained)]
    _check_networks("confirm", asked.networks, paths)
    held_in = set(study.runes or source.runes)
    runes = asked.runes or tuple(r for r in source.runes if r not in held_in) or source.runes
    again = [rune for rune in runes if rune in held_in]
    splits = asked.splits or (_others(study.splits) if again else study.splits)
    # Networks and seeds do not matter here: the search has used these drawings.
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
        "speeds": (),  # confirmations run at the study's own speed
    }
    resizes = asked.resizes or (study.resize,)
    loaded = {
        (i.rune, i.split_seed, i.seed, resize): replace(i, resize=resize)
        for resize in resizes
        for i in load_instances(study.model_copy(update={**update, "resize": resize}), source)
    }
    ways = list(itertools.product(splits, seeds, resizes))
    # As in a Latin square: every pass has each rune once, each in another way.
    return [
        loaded[(rune, *ways[(turn + i) % len(ways)])]
        for turn in range(len(ways))
        for i, rune in enumerate(runes)
    ]


def unseen_runes(config: Instances, source: RuneSource, most: int) -> list[str]:
    """At most ``most`` runes of the source that no trial sees, spread evenly."""
    seen = config.runes or source.runes
    unseen = [rune for rune in source.runes if rune not in seen]
    n = min(most, len(unseen))
    return [unseen[i * len(unseen) // n] for i in range(n)]


def _check_runes(table: str, runes: Collection[str], source: RuneSource) -> None:
    for rune in runes:
        if rune not in source.runes:
            known = ", ".join(source.runes)
            raise UserError(f"{table}.runes names {rune!r}; {source.name} has {known}")


def _check_networks(table: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{table}.networks names {name!r}; there are {', '.join(known)}")


def _others(used: Collection[int]) -> tuple[int, ...]:
    """The smallest unused numbers, as many as there are used ones."""
    unused = (number for number in itertools.count() if number not in used)
    return tuple(itertools.islice(unused, len(used)))
