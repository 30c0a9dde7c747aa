"""What trials are measured on: instances of (rune, split, network, seed)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from finetune.data.runes import RuneSource, Split, open_source
from finetune.model.checkpoints import list_networks, load_network

from ..errors import UserError
from ..study.config import Instances, StudyConfig
from ..study.manifest import make_manifest


@dataclass(frozen=True)
class Instance:
    """What one call is measured on."""

    rune: str
    split_seed: int
    network: str
    seed: int  # of the call's random numbers
    pretrained: nn.Module
    split: Split

    @property
    def label(self) -> str:
        """Its name in attributes and plots; unique in a study."""
        return f"{self.rune}/{self.split_seed}" + (f"/{self.seed}" if self.seed else "")


def load_instances(config: Instances, source: RuneSource) -> list[Instance]:
    """Every rune of every split with every seed; network i goes with rune i, counted round.

    Raises:
        UserError: networks are missing, a rune or network is unknown, or a rune has too few
            drawings.
    """
    unknown = [rune for rune in config.runes if rune not in source.runes]
    if unknown:
        raise UserError(
            f"instances.runes names {unknown[0]!r}; {source.name} has {', '.join(source.runes)}"
        )
    paths = {path.stem: path for path in list_networks(config.pretrained)}
    for name in config.networks:
        if name not in paths:
            raise UserError(f"instances.networks names {name!r}; there are {', '.join(paths)}")
    networks = [(name, load_network(paths[name])) for name in config.networks or paths]
    return [
        Instance(
            rune=rune,
            split_seed=split_seed,
            network=networks[i % len(networks)][0],
            seed=seed,
            pretrained=networks[i % len(networks)][1],
            split=source.split(rune, config.resize, split_seed, config.train),
        )
        for seed in config.seeds
        for split_seed in config.splits
        for i, rune in enumerate(config.runes or source.runes)
    ]


@dataclass(frozen=True)
class Measuring:
    """What a study measures on, and the manifest that says so."""

    instances: Sequence[Instance]
    manifest: dict[str, str]


def load_measuring(config: StudyConfig, data: Path | None) -> Measuring:
    """Data and networks of a study; ``data`` is as in `finetune.data.runes.open_source`.

    Raises:
        UserError: they are missing or not usable.
    """
    source = open_drawings(config, data)
    instances = load_instances(config.instances, source)
    return Measuring(instances, make_manifest(config, source, instances))


def open_drawings(config: StudyConfig, data: Path | None) -> RuneSource:
    """The drawings of a study; ``data`` is as in `load_measuring`.

    Raises:
        UserError: they are missing or not usable.
    """
    asked = config.instances
    try:
        return open_source(asked.source, data, alphabet=asked.alphabet, drawings=asked.drawings)
    except UserError as error:
        if asked.source == "omniglot" and asked.alphabet is None:
            raise UserError(f"{error}; --study quickstart needs no data") from error
        raise
