"""Find the instances of another study among those of this one, by their manifests.

Two studies may differ in how many runes, splits, seeds and speeds they have.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Entries of a manifest that name the instances; the larger study may have more in them.
MAY_GROW = ("clock", "instances", "networks")
_AT_SPEED = " at speed "  # as `hpo.clock.plan.Clock.mark` writes it


@dataclass(frozen=True)
class _Measured:
    """The parsed entries of a manifest.

    Args:
        ways: what all instances share: the resize.
        machine: digest of the reference machine; None: wall clock.
        labels: labels of instances, by place, network and speed.
        networks: digests of networks, by name.
    """

    ways: tuple[str, ...]
    machine: str | None
    labels: Mapping[tuple[str, str, str], str]
    networks: Mapping[str, str]


def included(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, str] | None:
    """This study's label of each of another study's instances, by the label there.

    An instance without a speed of its own is an instance at speed 1, if its study's clock has speed
    1. With another speed of the clock it does not equal any look: a look makes a share of a
    recipe's steps, but a slower machine makes all steps that it has time for.

    Args:
        theirs: manifest of the other study.
        mine: manifest of this study.

    Returns:
        None if the other study has an instance, a network or a machine that this one lacks.
    """
    there, here = _measured(theirs), _measured(mine)
    if (there.ways, there.machine) != (here.ways, here.machine):
        return None
    if not there.networks.items() <= here.networks.items():
        return None
    if not there.labels.keys() <= here.labels.keys():
        return None
    return {label: here.labels[which] for which, label in there.labels.items()}


def labels_of(manifest: Mapping[str, Any]) -> list[str]:
    """The labels of a study's instances, in order."""
    return list(_measured(manifest).labels.values())


def looks_of(manifest: Mapping[str, Any]) -> int:
    """How many of a study's first instances are looks, at a lower speed than the last instance."""
    speeds = [_own_speed(label) for label in labels_of(manifest)]
    return sum(1 for _ in itertools.takewhile(lambda speed: speed < speeds[-1], speeds))


def _own_speed(label: str) -> float:
    return float(label.partition("*")[2] or 0)


def _measured(manifest: Mapping[str, Any]) -> _Measured:
    words = str(manifest.get("instances", "")).split()
    clock = manifest.get("clock")
    machine, _, speed = str(clock).partition(_AT_SPEED)
    clock_speed = speed if speed == "1" else f"clock at {speed}"
    labels = {}
    for word in words:
        label, at, network = word.rpartition("@")
        place, _, own_speed = label.partition("*")
        if at:
            labels[place, network, own_speed or clock_speed] = label
    networks = (word.partition(":") for word in str(manifest.get("networks", "")).split())
    return _Measured(
        ways=tuple(word for word in words if "@" not in word),
        machine=None if clock is None else machine,
        labels=labels,
        networks={name: digest for name, _, digest in networks},
    )
