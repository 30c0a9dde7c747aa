"""Stored calls: their keys, how they are written, and how they are read again.

A call is made once. Its key names everything that its outcome depends on. Whoever needs the same
call reads it: the next worker of an interrupted trial, another trial of the same recipe, or another
study on the same instances.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..clock.plan import Plan
from ..problem.base import Instance, Method, Problem, Values, digest_of, short_digest
from ..process.logging import warn
from ..storage.calls import CallRow
from ..storage.rdb import StudyStorage
from .record import Call, FailedCall, read_call
from .stored import Remark

WALL = "wall"  # clock of a call that ends by this machine's wall clock
# Entries of a manifest that are no part of a call's key. The instance and the clock are in the key
# on their own; limits apply after the call.
_NOT_OF_A_CALL = ("clock", "cost", "instances", "limit", "networks", "space")


def mark_of(plan: Plan | None) -> str:
    """The clock of a call: its plan by a reference machine, or None for wall clock."""
    return WALL if plan is None else plan.mark


@dataclass(frozen=True)
class CallKey:
    """What a call depends on."""

    recipe: str  # digest of the complete values
    instance: str  # its label
    basis: str  # digest of everything else


class CallKeys:
    """Makes the keys of a study's calls in this process.

    Args:
        manifest: the study's. Code, drawings and estimator enter the keys, and so does each entry
            that this module does not know.
        table_seed: seed of the noise that losses are measured on; None: the study's.
    """

    def __init__(
        self,
        method: Method,
        problem: Problem,
        manifest: Mapping[str, str],
        table_seed: int | None = None,
    ) -> None:
        self._problem = problem
        common = {k: v for k, v in manifest.items() if k not in _NOT_OF_A_CALL}
        self._common = [common, table_seed, numerics_of(method.machine())]
        self._identities: dict[str, list[str]] = {}  # by label; a network's digest is slow

    def key(self, values: Values, instance: Instance, clock: str = WALL) -> CallKey:
        """The key of a call with these complete values.

        Args:
            clock: `WALL`, or the mark of the call's plan.
        """
        label = instance.label
        if label not in self._identities:
            self._identities[label] = self._problem.identity(instance)
        basis = [*self._common, self._identities[label], clock]
        digest = short_digest(json.dumps(basis, sort_keys=True))
        return CallKey(digest_of(values), label, digest)


def numerics_of(machine: Mapping[str, object]) -> dict[str, object]:
    """The part of a machine's description that changes the bits of a loss.

    The number of threads is not in it: a call computes each half of a step on one thread.
    """
    return {name: value for name, value in machine.items() if name != "threads"}


@dataclass(frozen=True)
class KeptCall:
    """A call that was read from the database."""

    outcome: Call | FailedCall
    is_own: bool  # whether this study made it, so that its picture is among this study's files


class KeptCalls:
    """A study's access to the calls stored in its database.

    Args:
        keys: makes the keys of the study's calls.
    """

    def __init__(self, storage: StudyStorage, study_id: int, keys: CallKeys) -> None:
        self._storage, self._study_id, self._keys = storage, study_id, keys
        self._remarked: set[str] = set()

    def of(
        self, values: Values, instances: Sequence[Instance], clock: str = WALL
    ) -> dict[str, KeptCall]:
        """Find the stored calls of complete values on these instances, by the instances' labels.

        A row that can't be read is logged and counts as a call that was not made.
        """
        wanted = {
            (k.instance, k.basis) for k in (self._keys.key(values, i, clock) for i in instances)
        }
        rows = [
            row
            for row in self._storage.calls_of(digest_of(values))
            if (row.instance, row.basis) in wanted
        ]
        found: dict[str, KeptCall] = {}
        remarks: dict[str, Remark] = {}
        # This study's own come last, so that they win over other studies'.
        for row in sorted(rows, key=lambda row: row.study_id == self._study_id):
            outcome = read_row(row)
            if isinstance(outcome, Remark):
                remarks[row.instance] = outcome
            else:
                found[row.instance] = KeptCall(outcome, row.study_id == self._study_id)
        for label, remark in remarks.items():
            if label not in found and str(remark) not in self._remarked:
                self._remarked.add(str(remark))
                warn(f"{remark}; the call is made again")
        return found

    def row(
        self,
        values: Values,
        instance: Instance,
        outcome: Call | FailedCall,
        trial: int | None,
        clock: str = WALL,
    ) -> CallRow:
        """The row to store for a call that was just made.

        Args:
            trial: number of the trial that made it; None if no trial did.
        """
        return row_of(self._keys.key(values, instance, clock), self._study_id, trial, outcome)

    @property
    def is_on(self) -> bool:
        """Whether the database stores calls; false if the table can't be created or used."""
        return self._storage.keeps_calls()

    def keep(self, row: CallRow) -> None:
        """Store a call that belongs to no trial. A trial's calls are stored with its reports."""
        self._storage.keep_calls([row])


def row_of(key: CallKey, study_id: int, trial: int | None, outcome: Call | FailedCall) -> CallRow:
    """The row of the table for a call."""
    value_json = json.dumps({**outcome.to_json(), "instance": key.instance})
    checksum = _checksum(key.recipe, key.instance, key.basis, value_json)
    return CallRow(key.recipe, key.instance, key.basis, study_id, trial, value_json, checksum)


def read_row(row: CallRow) -> Call | FailedCall | Remark:
    """The call in a row; a remark if the row is damaged or of another program."""
    place = f"hpo_calls: {row.instance} of recipe {row.recipe}"
    if _checksum(row.recipe, row.instance, row.basis, row.value_json) != row.checksum:
        return Remark(place, "is damaged: its checksum is another one")
    try:
        value = json.loads(row.value_json)
    except (ValueError, RecursionError):
        return Remark(place, "is no JSON")
    return read_call(value, row.instance, place)


def _checksum(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
