"""Say how a study stands: counts, best trials, pace, workers and their last events, time left."""

from __future__ import annotations

import json
import math
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .arguments import StudyOptions, json_option, option, parse
from .errors import printable, run_command
from .formatting import cost_of_answer, duration, setting

# Optuna takes half a second to import, and `--help` needs none of it.
if TYPE_CHECKING:
    from .analysis.status import Best, Confirmed, Pace, Status
    from .study.config import StudyConfig

_WIDTH = 100
_CLEAR = "\x1b[H\x1b[2J"  # of a terminal
_MOST_IMPORTANT = 10
_MOST_CONTROLS = 5
_MOST_EVENTS = 10
_KEY_WIDTH = 11


@dataclass(frozen=True, kw_only=True)
class StatusOptions(StudyOptions):
    """Which study, and how much of it."""

    best: int = option("show so many trials", 5, least=0)
    json: bool = json_option("hpo/analysis/status.py")
    watch: float | None = option(
        "look again after so many seconds, until Ctrl-C", None, above=0, metavar="SECONDS"
    )


def main(argv: Sequence[str] | None = None) -> int:
    description = f"{__doc__} It writes nothing to the study."
    options = parse(StatusOptions, argv, "status", description)
    import optuna

    from .study.config import load_study_file

    config = load_study_file(options.study)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if options.watch is None:
        print(_look(config, options))
        return 0
    # A person ends this by Ctrl-C, and that is no failure.
    with suppress(KeyboardInterrupt):
        while True:
            text = _look(config, options)
            print(_CLEAR + text if sys.stdout.isatty() else text, flush=True)
            time.sleep(options.watch)
    return 0


def _look(config: StudyConfig, options: StatusOptions) -> str:
    """How the study stands now, as it is printed."""
    from .analysis.status import status_of
    from .storage.open import load_study, looked_at
    from .storage.url import study_argument

    url = config.storage_url(options.storage)
    with looked_at(url, study_argument(options.study, options.storage)) as storage:
        study = load_study(storage, config.name)
        trials = study.get_trials(deepcopy=False)
        attrs = study.user_attrs
        beats = storage.retry.call(lambda: storage.heartbeats(study._study_id))
        kept_calls = storage.count_calls(study._study_id)
    now = datetime.now(UTC)
    status = status_of(config, url, trials, beats, now, options.best, attrs, kept_calls)
    return to_json(status) if options.json else printable(to_text(status))


def to_json(status: Status) -> str:
    """One JSON object; its keys are the fields of `Status`.  Null: not known, or not finite."""
    return json.dumps(_plain(asdict(status)), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def to_text(status: Status) -> str:
    """Lines for people and for grep: each begins with what it is about."""
    return "\n".join(f"{key:<{_KEY_WIDTH}} {text}".rstrip() for key, text in _lines(status))


def _lines(status: Status) -> Iterator[tuple[str, str]]:
    yield "study", f"{status.study} in {status.storage}"
    yield "trials", f"{status.finished} finished, {_counts(status.states)}"
    yield "outcomes", _counts(status.outcomes) or "none yet"
    alive = sum(w.alive for w in status.workers)
    yield "workers", f"{alive} alive" + _unheard(status)
    for w in status.workers:
        age = f"last heartbeat {w.silent_s:.0f} s ago"
        state = f"alive, {age}" if w.alive else f"silent for {w.silent_s:.0f} s"
        yield "worker", f"{w.worker}  trial {w.trial}  {state}"
    if status.paused is not None:
        yield "paused", f"{status.paused}; python -m hpo.resume lets its workers go on"
    for control in status.controls[:_MOST_CONTROLS]:
        yield "asked", control
    for event in status.events[:_MOST_EVENTS]:
        yield "event", str(event)
    yield "pace", _pace(status.pace)
    yield "compute", f"{duration(status.compute_s)} in finished trials"
    if status.kept_calls:
        yield "calls", f"{status.kept_calls} kept"
    if status.time_left_s is None:
        yield "time left", f"unknown: {status.time_left_unknown}"
    else:
        idle = ", once a worker runs" if status.time_left_s > 0 and not alive else ""
        yield "time left", f"{duration(status.time_left_s)} at this pace{idle}"
    parts = ", ".join(f"{name} {value:g}" for name, value in status.budget.items())
    yield "budget", (parts or "none") + (f"; spent: {status.spent}" if status.spent else "")
    if status.outlook is not None or status.outlook_unknown is not None:
        yield "outlook", str(status.outlook or f"unknown: {status.outlook_unknown}")
    if not status.best:
        yield "best", "no trial is complete and feasible"
    width = max((len(str(b.trial)) for b in status.best), default=0)
    for best in status.best:
        yield from _best_lines(best, width)
    if status.confirmed is not None:
        yield "confirmed", _confirmed(status.confirmed)
    if status.confirmed_unreadable is not None:
        yield "confirmed", status.confirmed_unreadable
    yield from _importance_lines(status)
    if n := len(status.unreadable):
        more = f", and {n - 1} more: see --json" if n > 1 else ""
        yield "unreadable", f"{status.unreadable[0]}{more}"


def _unheard(status: Status) -> str:
    if not status.no_heartbeat:
        return ""
    return f"; running without heartbeats, by other programs: {status.no_heartbeat}"


def _pace(pace: Pace | None) -> str:
    if pace is None:
        return "unknown: no trial has run yet"
    span = duration(pace.active_s)
    window = f"since the start, {span}" if pace.since_start else f"in the last {span}"
    return (
        f"{pace.trials_per_hour:.1f} trials/h ({pace.finished} finished {window} "
        "in which any trial ran)"
    )


def _best_lines(best: Best, width: int) -> Iterator[tuple[str, str]]:
    error = "" if best.standard_error is None else f" ± {best.standard_error:.4f}"
    call = "" if best.longest_call_s is None else f"  longest call {best.longest_call_s:.1f} s"
    yield "best", f"trial {best.trial:>{width}}  loss {best.loss:.4f}{error}{call}"
    if best.cost is not None:
        yield "", f"  cost of an answer: {cost_of_answer(best.cost)}"
    values = best.params if best.changed is None else best.changed
    words = "  ".join(f"{name}={setting(v)}" for name, v in values.items())
    if best.changed == {}:
        words = "the default recipe"
    for line in textwrap.wrap(
        words, _WIDTH - _KEY_WIDTH - 3, break_long_words=False, break_on_hyphens=False
    ):
        yield "", f"  {line}"


def _confirmed(confirmed: Confirmed) -> str:
    error = "" if confirmed.standard_error is None else f" ± {confirmed.standard_error:.4f}"
    who = confirmed.name if confirmed.trial is None else f"trial {confirmed.trial}"
    if confirmed.is_default:
        who += ", the default recipe" if confirmed.trial is not None else " recipe"
    text = f"{who}  loss {confirmed.loss:.4f}{error}"
    if confirmed.difference is None:
        return text
    interval = ""
    if confirmed.low is not None and confirmed.high is not None:
        interval = f" (95 % {confirmed.low:+.4f} to {confirmed.high:+.4f})"
    return f"{text}  {confirmed.difference:+.4f}{interval} to the default's"


def _importance_lines(status: Status) -> Iterator[tuple[str, str]]:
    if status.importances_unknown is not None:
        yield "importance", f"unknown: {status.importances_unknown}"
    shown_ones = status.importances[:_MOST_IMPORTANT]
    width = max((len(i.name) for i in shown_ones), default=0)
    for i in shown_ones:
        yield "importance", f"{i.name:<{width}}  {i.share:.2f} ± {i.standard_error:.2f}"
    if rest := status.importances[_MOST_IMPORTANT:]:
        yield "importance", f"{len(rest)} more, at most {rest[0].share:.2f} each: see --json"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


if __name__ == "__main__":
    run_command(main)
