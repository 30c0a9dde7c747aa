"""Overview: counts, pace and what is left; and what the study is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from optuna.trial import TrialState

from ...formatting import duration
from ...study.manifest import MADE_BY_KEY
from ..data import StudyData
from ..document import Block, Facts, Section, Table, Text

_MEANINGS = {
    "code": "digest of the modules that a loss depends on",
    "data": "the drawings, and their digest",
    "file": "a person's, and which of its values are parameters",
    "networks": "the pretrained networks, and their digests",
    "instances": "resize, then rune/split@network of each instance, in their order",
    "estimator": "of the loss",
    "limit": "of a call",
    "cost": "of an answer, at most",
    "clock": "what ends calls",
    "space": "digest of what is sampled and what is fixed",
    "torch": "its release",
}


def manifest_section(data: StudyData) -> Section:
    """What a trial is, and the manifest."""
    return Section("study", "The study", list(_manifest(data)))


def _manifest(data: StudyData) -> Iterator[Block]:
    config = data.config
    limit = config.limits.cost
    yield Text(
        "Ten drawings of a rune, and a rectified-flow network that has only seen digits: a recipe "
        "says how to teach it the rune. A trial samples a recipe, runs the timed call on one "
        "instance (rune, split of its drawings, network, seed) after another, and is measured by "
        "the mean loss on drawings that the call did not see: lower is better. A call over "
        f"{config.feasible_s:g} s makes a recipe infeasible"
        + (
            "."
            if limit is None
            else f", and so does an answer that costs over {limit:g} times the plain network's."
        )
    )
    rows = [
        (str(key), str(value), _MEANINGS.get(str(key), "")) for key, value in data.manifest.items()
    ]
    if rows:
        yield Table("The manifest: what all its losses depend on", ("entry", "value", ""), rows)
    else:
        yield Text("The study has no manifest, so what its losses depend on is not known.")
    made_by = data.attrs.get(MADE_BY_KEY)
    if isinstance(made_by, Mapping):
        versions = ", ".join(f"{name} {version}" for name, version in made_by.items())
        yield Text(f"Created with {versions}.", aside=True)


def overview_section(data: StudyData) -> Section:
    """Counts, pace and what is left."""
    return Section("overview", "Overview", list(_overview(data)))


def _overview(data: StudyData) -> Iterator[Block]:
    status = data.status
    alive = sum(w.alive for w in status.workers)
    left = (
        f"unknown: {status.time_left_unknown}"
        if status.time_left_s is None
        else duration(status.time_left_s)
    )
    budget = ", ".join(f"{name} {value:g}" for name, value in status.budget.items()) or "none"
    pace = status.pace
    yield Facts(
        [
            ("trials finished", str(status.finished)),
            *((f"trials {s.name.lower()}", str(status.states[s.name.lower()])) for s in _STATES),
            ("compute", duration(status.compute_s)),
            ("pace", "unknown" if pace is None else f"{pace.trials_per_hour:.1f} trials/h"),
            ("workers alive", str(alive)),
            ("budget", budget + (f"; spent: {status.spent}" if status.spent else "")),
            ("time left", left),
            ("outlook", str(status.outlook or f"unknown: {status.outlook_unknown}")),
        ]
    )


_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING,
           TrialState.WAITING)  # fmt: skip
