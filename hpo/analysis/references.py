"""Losses of the public reference recipes, as measured by `benchmarks.references`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..study.confirmation import CandidateResult, read_confirmed_call
from ..trial.record import Call
from ..trial.stored import finite
from .intervals import Interval, interval, unit_means, units_of

MEASURED = Path(__file__).parents[1] / "studies" / "results" / "references.jsonl"
NAMES = ("A", "B")


@dataclass(frozen=True)
class Reference:
    """The loss of a reference recipe on one rune."""

    recipe: str  # one of `NAMES`
    data: str  # digest of the drawings
    network: str  # digest of the network
    label: str  # label of the instance, as in a study: RUNE/SPLIT
    resize: str
    loss: float
    standard_error: float | None


def read_references(path: Path | None) -> list[Reference]:
    """Read a file of reference losses; None: the file of this project, if it is there.

    Raises:
        UserError: the file can't be read, or has something else in it.
    """
    if path is None:
        if not MEASURED.is_file():
            return []
        path = MEASURED
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
        found = [_reference(row) for row in rows if row["recipe"] in NAMES]
    except OSError as error:
        raise UserError(f"--references {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--references {path} is not what benchmarks.references writes; name its --out"
        ) from error
    return found


def _reference(row: Mapping[str, Any]) -> Reference:
    loss = finite(row["loss"])
    if loss is None:
        raise ValueError("no loss")
    return Reference(
        recipe=row["recipe"],
        data=str(row["data"]),
        network=str(row["network"]),
        label=f"{row['rune']}/{row['split']}",
        resize=str(row["resize"]),
        loss=loss,
        standard_error=finite(row.get("standard_error")),
    )


@dataclass(frozen=True)
class Place:
    """An instance of a study, with what its losses depend on beside the recipe."""

    label: str  # in the study's attributes
    drawings: str  # RUNE/SPLIT
    resize: str
    network: str | None  # digest of the network; None: unknown


def searched_places(manifest: Mapping[str, Any]) -> list[Place]:
    """The instances of trials, from the manifest."""
    resize, _, rest = str(manifest.get("instances", "")).partition(" ")
    digests = _network_digests(manifest)
    places = []
    for word in rest.split():
        label, _, network = word.rpartition("@")
        places.append(Place(label, _drawings(label), resize, digests.get(network)))
    return places


def confirmed_places(manifest: Mapping[str, Any], labels: Sequence[str]) -> list[Place]:
    """The instances of a confirmation, ``RUNE/SPLIT[/SEED] RESIZE``.

    Their network is known only if the study has a single one.
    """
    digests = set(_network_digests(manifest).values())
    network = digests.pop() if len(digests) == 1 else None
    places = []
    for label in labels:
        instance, _, resize = label.rpartition(" ")
        places.append(Place(label, _drawings(instance), resize, network))
    return places


def losses_on(
    references: Sequence[Reference], manifest: Mapping[str, Any], places: Sequence[Place]
) -> dict[str, dict[str, Call]]:
    """Losses of references by recipe and instance, where drawings and network are the same."""
    data = str(manifest.get("data", "")).rpartition(" ")[2]
    known = {(r.recipe, r.data, r.network, r.label, r.resize): r for r in references}
    found: dict[str, dict[str, Call]] = {}
    for name in NAMES:
        on = {
            place.label: Call(
                instance=place.label,
                loss=known[key].loss,
                standard_error=known[key].standard_error,
            )
            for place in places
            if (key := (name, data, place.network, place.drawings, place.resize)) in known
        }
        if on:
            found[name] = on
    return found


def _drawings(label: str) -> str:
    return "/".join(label.split("/")[:2])


def _network_digests(manifest: Mapping[str, Any]) -> dict[str, str]:
    pairs = (word.partition(":") for word in str(manifest.get("networks", "")).split())
    return {name: digest for name, _, digest in pairs}


def losses_of(
    attrs: Mapping[str, Any], row: CandidateResult, instances: Sequence[str]
) -> dict[str, Call]:
    """A candidate's calls in a confirmation, by instance.

    Args:
        attrs: user attributes of the study; older databases have the calls there.
        row: the candidate's row in the result.

    Returns:
        Empty if the calls do not belong to the loss in the result, because a later confirmation has
        begun.
    """
    if row.measured:
        return {call.instance: call for call in row.measured}
    calls = ((label, read_confirmed_call(attrs, row.digest, label)) for label in instances)
    found = {label: call for label, call in calls if isinstance(call, Call)}
    if not found or row.loss is None:
        return {}
    again = over_runes({label: call.loss for label, call in found.items()}, instances).mean
    return found if abs(again - row.loss) < 1e-9 else {}


def over_runes(values: Mapping[str, float], instances: Sequence[str]) -> Interval:
    """The mean over runes, with its interval, of values that are given by instance."""
    units = units_of({label: label.partition("/")[0] for label in instances})
    return interval(list(unit_means(values, units).values()))
