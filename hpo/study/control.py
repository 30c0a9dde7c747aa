"""Control of a study that runs: what people ask of it, and what its workers make of that.

Everything that was asked stays, with its time and author, as a row in the study's database. Every
worker reads the rows between calls.
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
    """One thing that somebody asked of a study."""

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
        """What was done, without when and by whom."""
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
    """What the rows say, all together."""

    controls: Sequence[Control] = ()
    paused: Control | None = None
    stopped: int = 0  # how many rows there were when workers were last asked to stop
    budget: Mapping[str, Any] = field(default_factory=dict)
    dropped: frozenset[int] = frozenset()  # numbers of trials

    def apply(self, budget: Budget) -> Budget:
        """A study file's budget with what was set since."""
        return Budget.model_validate({**budget.model_dump(), **self.budget})


def read_wishes(storage: StudyStorage, study_id: int) -> Wishes:
    """What people ask of a study now."""
    return _wishes(storage.read(lambda c: read_controls(c, study_id)))


def wishes_in(attrs: Mapping[str, Any]) -> Wishes:
    """The same of a study's user attributes."""
    return _wishes(attrs[key] for key in sorted(attrs) if key.startswith(PREFIX))


def _wishes(rows: Iterable[Any]) -> Wishes:
    """Rows of another release are passed over."""
    return wishes_of(found for row in rows if (found := read_stored(Control, row)[0]) is not None)


def wishes_of(controls: Iterable[Control]) -> Wishes:
    """What these controls say, the oldest first."""
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
            # As a study file has them, so that a value of another release can't be one.
            budget |= Budget.model_validate(dict(control.budget or {})).model_dump(
                exclude_unset=True
            )
        elif control.action == "drop" and control.trial is not None:
            dropped.add(control.trial)
        elif control.action == "restore":
            dropped.discard(control.trial or 0)
    return Wishes(tuple(seen), paused, stopped, budget, frozenset(dropped))


def ask(storage: StudyStorage, study_id: int, action: Action, **more: Any) -> Control:
    """Ask something of a study.

    Args:
        more: further fields of `Control`.
    """
    control = _made(action, more)
    storage.transact(lambda c: add_control(c, study_id, control.to_json()))
    return control


def mark(
    storage: StudyStorage, study_id: int, number: int, trial_id: int, why: str | None
) -> Control:
    """Drop a finished trial, or restore it where ``why`` is None, and write down who did."""
    control = _made("restore" if why is None else "drop", {"trial": number, "why": why})

    def work(c: Any) -> None:
        add_control(c, study_id, control.to_json())
        mark_dropped(c, trial_id, why)

    storage.transact(work)
    return control


def enqueue(storage: StudyStorage, study_id: int, parameters: Mapping[str, Any]) -> Control:
    """Queue a trial, and write down who did; the parameters are checked already."""

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
    """Whose command this is."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def budget_text(budget: Mapping[str, Any]) -> str:
    """A budget's parts for people."""
    parts = [f"{k} {'without limit' if v is None else format(v, 'g')}" for k, v in budget.items()]
    return "the budget: " + (", ".join(parts) or "nothing")
