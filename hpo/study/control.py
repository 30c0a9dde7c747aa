"""Control of a running study: pause, resume, stop, budget, enqueue and drop.

Every request is kept as a row in the study's database, with its time and author. Workers read the
rows between calls.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from ..storage.controls import PREFIX, add_control, mark_dropped, read_controls
from ..storage.rdb import StudyStorage
from ..storage.transactions import queue
from ..trial.stored import Stored, Whole, read_stored
from .config import Budget

Action = Literal["pause", "resume", "stop", "budget", "drop", "restore", "enqueue"]


class Control(Stored):
    """A request to a study."""

    at: str
    """When, in ISO 8601, UTC."""
    author: str
    """Whose command it was: USER@HOST."""
    action: Action
    budget: dict[str, Any] | None = None
    """Of ``budget``: the parts that it sets, null for no limit."""
    trial: Whole | None = None
    """Of ``drop`` and ``restore``: the trial's number."""
    why: str | None = None
    """Of ``drop``."""
    parameters: dict[str, Any] | None = None
    """Of ``enqueue``."""

    @property
    def words(self) -> str:
        """The request in words, without time and author."""
        words = {
            "budget": lambda: "set " + budget_text(self.budget or {}),
            "drop": lambda: f"dropped trial {self.trial}: {self.why}",
            "restore": lambda: f"restored trial {self.trial}",
            "enqueue": lambda: f"queued trial {self.trial}",
        }
        done = {"pause": "paused", "resume": "resumed", "stop": "stopped"}
        return words[self.action]() if self.action in words else f"{done[self.action]} the study"

    def __str__(self) -> str:
        return f"{self.author} {self.words} at {self.at}"


@dataclass(frozen=True)
class Wishes:
    """The combined effect of all requests."""

    controls: Sequence[Control] = ()
    paused: Control | None = None
    stopped: int = 0  # number of rows at the last request to stop
    budget: Mapping[str, Any] = field(default_factory=dict)
    dropped: frozenset[int] = frozenset()  # numbers of trials

    def apply(self, budget: Budget) -> Budget:
        """The study file's budget with the requested changes."""
        return Budget.model_validate({**budget.model_dump(), **self.budget})


def read_wishes(storage: StudyStorage, study_id: int) -> Wishes:
    """Read the combined effect of a study's requests."""
    return _wishes(storage.read(lambda c: read_controls(c, study_id)))


def wishes_in(attrs: Mapping[str, Any]) -> Wishes:
    """The combined effect of the requests among a study's user attributes."""
    return _wishes(attrs[key] for key in sorted(attrs) if key.startswith(PREFIX))


def _wishes(rows: Iterable[Any]) -> Wishes:
    """The combined effect of rows; rows of another release are ignored."""
    return wishes_of(found for row in rows if (found := read_stored(Control, row)[0]) is not None)


def wishes_of(controls: Iterable[Control]) -> Wishes:
    """The combined effect of requests, given oldest first."""
    paused: Control | None = None
    stopped = 0
    budget: dict[str, Any] = {}
    dropped: set[int] = set()
    seen: list[Control] = []
    for control in controls:
        seen.append(control)
        if control.action == "pause":
            paused = paused or control
        elif control.action == "resume":
            paused = None
        elif control.action == "stop":
            stopped = len(seen)
        elif control.action == "budget":
            # Validated like a study file, so that a bad value of another release is ignored.
            budget |= Budget.model_validate(dict(control.budget or {})).model_dump(
                exclude_unset=True
            )
        elif control.action == "drop" and control.trial is not None:
            dropped.add(control.trial)
        elif control.action == "restore":
            dropped.discard(control.trial or 0)
    return Wishes(tuple(seen), paused, stopped, budget, frozenset(dropped))


def ask(storage: StudyStorage, study_id: int, action: Action, **more: Any) -> Control:
    """Store a request to a study.

    Args:
        more: further fields of `Control`.
    """
    control = _made(action, more)
    storage.transact(lambda c: add_control(c, study_id, control.to_json()))
    return control


def mark(
    storage: StudyStorage, study_id: int, number: int, trial_id: int, why: str | None
) -> Control:
    """Drop a finished trial, or restore it if ``why`` is None, and store who did."""
    control = _made("restore" if why is None else "drop", {"trial": number, "why": why})

    def work(c: Any) -> None:
        add_control(c, study_id, control.to_json())
        mark_dropped(c, trial_id, why)

    storage.transact(work)
    return control


def enqueue(storage: StudyStorage, study_id: int, parameters: Mapping[str, Any]) -> Control:
    """Queue a trial with checked parameters, and store who did."""

    def work(c: Any) -> Control:
        number = queue(c, study_id, parameters)
        control = _made("enqueue", {"trial": number, "parameters": dict(parameters)})
        add_control(c, study_id, control.to_json())
        return control

    return storage.transact(work)


def _made(action: Action, more: Mapping[str, Any]) -> Control:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    set_ones = {name: value for name, value in more.items() if value is not None}
    return Control(at=at, author=author(), action=action, **set_ones)


def author() -> str:
    """The user who runs this command, as USER@HOST."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def budget_text(budget: Mapping[str, Any]) -> str:
    """A budget's parts, for people."""
    parts = [f"{k} {'without limit' if v is None else format(v, 'g')}" for k, v in budget.items()]
    return "the budget: " + (", ".join(parts) or "nothing")
