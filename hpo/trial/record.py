"""The stored form of a trial and of a call: one model each, with its reader and its writer."""

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
    # Bad entries are not dropped from a series: the others would change their places.
    if isinstance(value, (list, tuple)) and all(v is None or finite(v) is not None for v in value):
        return value
    raise ValueError("should be a list of numbers")


def _parsed(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError("should be JSON") from error


Series = Annotated[tuple[Number | None, ...], BeforeValidator(_whole_series)]
# A JSON object that is stored as text.
ObjectText = Annotated[
    dict[str, Any], BeforeValidator(_parsed), PlainSerializer(json.dumps, return_type=str)
]


class Call(Stored):
    """One timed call of a recipe on one instance.

    It is stored as an entry of a trial's attribute ``instances``, and as a row of the table of
    calls. Older databases have a confirmation's calls as study attributes, without ``instance``,
    ``curve``, ``per_t_bin`` and ``picture``.
    """

    instance: str  # label of the instance
    loss: Number  # on drawings that the call did not see
    standard_error: Number | None = None
    seconds: Number | None = None
    steps: Whole | None = None
    steps_wanted: Whole | None = None  # steps of the schedule without any time limit
    curve: Series = ()  # training loss over the schedule
    per_t_bin: Series = ()  # loss in each of `finetune.scoring.estimators.T_BINS` bins of t
    picture: str | None = None  # id of the artifact with the call's picture
    cost: Number | None = None  # CPU time of an answer, over the plain network's
    basis: str | None = None  # digest of what the loss depends on beside recipe and instance
    output: str | None = None  # the end of what a user's file printed
    kept: Flag = False  # whether it was read from the table of calls instead of being made


class FailedCall(Stored):
    """A confirmation's call without a loss: it was stopped, not finite, or out of memory."""

    loss: None = None
    seconds: Number
    reason: str = ""
    basis: str | None = None


def read_call(value: object, instance: str, place: str) -> Call | FailedCall | Remark:
    """Read a call that a confirmation stored as a study attribute.

    Args:
        instance: label of the instance; the stored value does not have it.
        place: name of the study attribute.
    """
    if not isinstance(value, Mapping):
        return Remark(place, "should be an object")
    model: type[Call] | type[FailedCall] = FailedCall if value.get("loss") is None else Call
    call, remarks = read_stored(model, {**value, "instance": instance}, [place])
    return remarks[0] if call is None else call


class Machine(Stored):
    """The properties of a machine and its software that change a loss in its last bits."""

    model_config = ConfigDict(extra="allow")

    device: str | None = None
    units: str | None = None  # the CPU's instruction set, and the number format of "auto"
    threads: Whole | None = None
    torch: str | None = None
    speed: Number | None = None  # training steps a second of a user's file that runs by wall clock


class Attempt(Stored):
    """A worker that began the trial and did not finish it."""

    worker: str
    why: str = ""
    lost: Flag  # whether the worker vanished; otherwise it released the trial
    calls: Whole = 0  # calls of the trial stored by then, those of earlier attempts included
    seconds: Number | None = None  # duration; None if an earlier release did not store it
    at: Moment | None = None  # when the attempt ended: a lost worker's last heartbeat


class TrialRecord(Stored):
    """The user attributes of a trial, by their names."""

    recipe: ObjectText | None = None  # values by names of the method's fields
    machine: Machine | None = None
    instances: tuple[Call, ...] = ()
    # How many of the study's first instances are looks at a lower speed. Looks predict the loss and
    # are no part of it.
    looks: Whole = 0
    standard_error: Number | None = None  # of the mean loss
    longest_call_s: Number | None = None
    predicted_s: Number | None = None  # time of the longest call on the study's reference machine
    cost: Number | None = None  # mean of the calls' costs
    outcome: str | None = None  # an `Outcome`, or one of another release
    worker: str | None = None
    reason: str = ""
    traceback: str | None = None
    attempts: tuple[Attempt, ...] = ()
    taken_from: str | None = None  # STUDY/NUMBER of the trial that this study took over

    _remarks: tuple[Remark, ...] = PrivateAttr(default=())

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """The stored values that could not be read."""
        return self._remarks

    @property
    def limited_s(self) -> float | None:
        """Seconds of the longest call as the limit counts them: predicted ones if there are any."""
        return self.longest_call_s if self.predicted_s is None else self.predicted_s

    @property
    def counted(self) -> tuple[Call, ...]:
        """The calls whose mean is the trial's loss; its looks while there are no such calls."""
        return self.instances[self.looks :] or self.instances

    @property
    def mean_loss(self) -> float | None:
        """Mean loss of the calls that count; None if there are none."""
        return mean_loss(self.counted) if self.instances else None

    @classmethod
    def of_calls(cls, calls: Sequence[Call], looks: int = 0) -> TrialRecord:
        """The record that a trial stores after each of its calls.

        Args:
            looks: how many of the study's first instances are looks at a lower speed.
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
            # Each cost is timed for a moment only; their mean is steadier.
            cost=sum(costs) / len(costs) if costs else None,
        )
        # A field that is set is stored.
        return record.model_copy(update={"looks": looks}) if looks else record

    @classmethod
    def of_ending(cls, ending: Ending, worker: str) -> TrialRecord:
        """The record that a trial stores at its end."""
        optional = {"reason": ending.reason, "traceback": ending.traceback}
        told = {key: text for key, text in optional.items() if text}
        return cls.model_validate({"outcome": ending.outcome.value, "worker": worker, **told})


def mean_loss(calls: Sequence[Call]) -> float:
    """The mean of the losses of one or more calls."""
    return sum(c.loss for c in calls) / len(calls)


def compute_s(trial: FrozenTrial) -> float:
    """Seconds that workers ran a trial, unfinished attempts included.

    An attempt that still runs does not count.
    """
    duration = trial.duration
    seconds = 0.0 if duration is None else duration.total_seconds()
    if "attempts" not in trial.user_attrs:  # so for most trials; it saves reading the whole record
        return seconds
    return seconds + sum(a.seconds or 0.0 for a in read_trial(trial).attempts)


def read_trial(trial: FrozenTrial | optuna.Trial) -> TrialRecord:
    """Read a trial's record. What can't be read is left out, with a remark for each part."""
    # Read once: an `optuna.Trial` copies all attributes each time.
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
