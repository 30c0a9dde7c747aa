"""What a trial and a call store: one model each, its reader and its writer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import optuna
from optuna.trial import FrozenTrial
from pydantic import BeforeValidator, ConfigDict, PlainSerializer, PrivateAttr

from .outcome import Ending
from .stored import Flag, Moment, Number, Remark, Stored, Whole, finite, read_stored


def _whole_series(value: object) -> object:
    # A list without its bad entries would have the others in wrong places.
    if isinstance(value, (list, tuple)) and all(v is None or finite(v) is not None for v in value):
        return value
    raise ValueError("should be a list of numbers")


def _parsed(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError("should be JSON") from error


Series = Annotated[tuple[Number | None, ...], BeforeValidator(_whole_series)]
# An object that is stored as text.
ObjectText = Annotated[
    dict[str, Any], BeforeValidator(_parsed), PlainSerializer(json.dumps, return_type=str)
]


class Call(Stored):
    """One timed call of a recipe on one instance.

    It is an entry of a trial's attribute ``instances``, and a row of the table of calls. Older
    databases have those of a confirmation (without ``instance``, ``curve``, ``per_t_bin`` and
    ``picture``) as study attributes.
    """

    instance: str  # its label
    loss: Number  # on drawings that the call did not see
    standard_error: Number | None = None
    seconds: Number | None = None
    steps: Whole | None = None
    steps_wanted: Whole | None = None  # of a schedule that no clock cuts
    curve: Series = ()  # training loss, by share of the schedule
    per_t_bin: Series = ()  # loss by t, of `finetune.scoring.estimators.T_BINS` bins
    picture: str | None = None  # id of the artifact that shows it
    cost: Number | None = None  # CPU time of an answer, over the plain network's
    basis: str | None = None  # digest of what it depends on beside recipe and instance
    output: str | None = None  # the end of what a person's file printed
    kept: Flag = False  # it was read, not made: an earlier attempt or another trial had made it


class FailedCall(Stored):
    """A call of a confirmation that gave no loss: stopped, not finite, or out of memory."""

    loss: None = None
    seconds: Number
    reason: str = ""
    basis: str | None = None


def read_call(value: object, instance: str, place: str) -> Call | FailedCall | Remark:
    """A call that a confirmation stored.

    Args:
        instance: its label, which is no part of the stored value.
        place: the study attribute that holds it.
    """
    if not isinstance(value, Mapping):
        return Remark(place, "should be an object")
    model: type[Call] | type[FailedCall] = FailedCall if value.get("loss") is None else Call
    call, remarks = read_stored(model, {**value, "instance": instance}, [place])
    return remarks[0] if call is None else call


class Machine(Stored):
    """What losses depend on beside the recipe, to the last bit."""

    model_config = ConfigDict(extra="allow")

    device: str | None = None
    units: str | None = None  # the CPU's instruction set, and the number format of "auto"
    threads: Whole | None = None
    torch: str | None = None
    speed: Number | None = None  # training steps a second, where wall clock ends a file's calls


class Attempt(Stored):
    """A worker that began the trial and did not finish it."""

    worker: str
    why: str = ""
    lost: Flag  # whether it vanished; else it gave the trial back
    calls: Whole = 0  # of the trial that are kept, those of earlier attempts included
    seconds: Number | None = None  # that it ran; None: an earlier release did not store it
    at: Moment | None = None  # when it ended; of a lost worker its last heartbeat


class TrialRecord(Stored):
    """The user attributes of a trial, by their names."""

    recipe: ObjectText | None = None  # values by the names of the method's fields
    machine: Machine | None = None
    instances: tuple[Call, ...] = ()
    # How many of the study's instances, the first ones, are looks at a lower speed, which predict
    # the loss and are no part of it.
    looks: Whole = 0
    standard_error: Number | None = None  # of the mean loss
    longest_call_s: Number | None = None
    predicted_s: Number | None = None  # of its longest call, on the study's reference machine
    cost: Number | None = None  # the calls' mean
    outcome: str | None = None  # an `Outcome`, or that of another release
    worker: str | None = None
    reason: str = ""
    traceback: str | None = None
    attempts: tuple[Attempt, ...] = ()
    taken_from: str | None = None  # STUDY/NUMBER: this study took it over from there

    _remarks: tuple[Remark, ...] = PrivateAttr(default=())

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What its reader could not read."""
        return self._remarks

    @property
    def limited_s(self) -> float | None:
        """Seconds of its longest call to which a limit applies: predicted ones where there are."""
        return self.longest_call_s if self.predicted_s is None else self.predicted_s

    @property
    def counted(self) -> tuple[Call, ...]:
        """The calls whose mean is the trial's loss; as long as there are none, its looks."""
        return self.instances[self.looks :] or self.instances

    @property
    def mean_loss(self) -> float | None:
        """Over the calls that count; None without any."""
        return mean_loss(self.counted) if self.instances else None

    @classmethod
    def of_calls(cls, calls: Sequence[Call], looks: int = 0) -> TrialRecord:
        """What a trial stores after each of its calls.

        Args:
            looks: how many of the study's instances, the first ones, are looks at a lower speed.
        """
        counted = calls[looks:] or calls
        errors = [c.standard_error for c in counted]
        known = [e for e in errors if e is not None]
        costs = [c.cost for c in calls if c.cost is not None]
        record = cls(
            instances=tuple(calls),
            standard_error=(
                math.sqrt(sum(e**2 for e in known)) / len(counted)
                if len(known) == len(errors)
                else None
            ),
            longest_call_s=max(c.seconds or 0.0 for c in calls),
            # Each is timed for a moment, and a mean of them is steadier.
            cost=sum(costs) / len(costs) if costs else None,
        )
        # A field that is set is stored.
        return record.model_copy(update={"looks": looks}) if looks else record

    @classmethod
    def of_ending(cls, ending: Ending, worker: str) -> TrialRecord:
        """What a trial stores at its end."""
        optional = {"reason": ending.reason, "traceback": ending.traceback}
        told = {key: text for key, text in optional.items() if text}
        return cls.model_validate({"outcome": ending.outcome.value, "worker": worker, **told})


def mean_loss(calls: Sequence[Call]) -> float:
    """The mean of the calls' losses; of one call at least."""
    return sum(c.loss for c in calls) / len(calls)


def compute_s(trial: FrozenTrial) -> float:
    """Seconds that workers ran a trial, those of attempts that did not finish it included.

    Without the attempt at hand while it runs.
    """
    duration = trial.duration
    seconds = 0.0 if duration is None else duration.total_seconds()
    if "attempts" not in trial.user_attrs:  # most trials: it saves reading the whole record
        return seconds
    return seconds + sum(a.seconds or 0.0 for a in read_trial(trial).attempts)


def read_trial(trial: FrozenTrial | optuna.Trial) -> TrialRecord:
    """What is stored with a trial; what can't be read is left out, with a remark for each."""
    # An `optuna.Trial` copies all of its attributes whenever it is asked for them.
    frozen = trial._cached_frozen_trial if isinstance(trial, optuna.Trial) else trial
    record, remarks = read_stored(TrialRecord, frozen.user_attrs)
    if record is None:  # every field is optional
        record = TrialRecord()
    if remarks:
        record._remarks = remarks
    return record


def write_trial(trial: optuna.Trial, record: TrialRecord) -> None:
    """Store the fields of a record that were set."""
    for key, value in record.to_json().items():
        trial.set_user_attr(key, value)
