"""Notes and plots of the dashboard, computed on read.

Workers store only trials and their pictures. Notes and plots are computed here and cached until the
study changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial

from ..analysis.references import read_references
from ..errors import UserError
from ..problem.base import Method
from ..problem.registry import RECIPE, load_method
from ..process.logging import warn
from ..report.contents import NOTE_SECTIONS, report_of
from ..report.data import StudyData
from ..report.markdown import section_markdown, to_markdown
from ..report.plotly import to_plotly
from ..report.sections.trial import trial_section
from ..study.config import StudyConfig, load_study_file
from ..trial.run import run_of, runs_of
from .attrs import NOTE_VERSION_OF_WORKER, PLOT_PREFIX
from .storage import WatchedStorage

# Computing takes at most a twentieth of a core's time, however large a study is.
_REST = 20.0
# A page waits so long for a computation, and then shows the previous result.
_FIRST_WAIT_S, _WAIT_S = 5.0, 0.5
_VALUE = "loss"  # the page's name for the value of a trial

_Key = tuple[int, str]  # a study's id, which may be reused, and its name


@dataclass(frozen=True)
class _State:
    """What a study's note and plots depend on. An unchanged trial is the same object."""

    finished: Sequence[FrozenTrial]
    unfinished: int
    attrs: Mapping[str, Any]  # user attributes of the study

    def is_still(self, now: _State) -> bool:
        """Whether nothing has changed since."""
        return (
            len(self.finished) == len(now.finished)
            and self.unfinished == now.unfinished
            and all(a is b for a, b in zip(self.finished, now.finished, strict=True))
            and self.attrs == now.attrs
        )


@dataclass(frozen=True)
class _Story:
    """A study's note in Markdown, and its plots as JSON by their ids."""

    state: _State
    note: str
    plots: Mapping[str, str]
    again_at: float  # monotonic time before which it is not computed again


class Notes:
    """A plug-in for the dashboard: it adds notes and plots to the answer about a study.

    If a person wrote a note in the dashboard, it is shown instead. Notes and plots that workers of
    older releases stored are replaced.

    Args:
        storage: the dashboard's storage.
        config: the study file that the dashboard was started with. Other studies in the database
            have a note and plots if their file is in ``studies/``.
        study_argument: the study's name or path as the user wrote it, for commands in the note.
        has_pictures: whether the dashboard shows files of trials.
    """

    name = "notes"
    api = 2

    def __init__(
        self,
        storage: WatchedStorage,
        config: StudyConfig | None,
        study_argument: str,
        has_pictures: bool,
    ) -> None:
        self._storage = storage
        self._argument = study_argument
        self._has_pictures = has_pictures
        self._configs = {} if config is None else {config.name: (study_argument, config)}
        self._lock = threading.Lock()
        self._stories: dict[_Key, _Story] = {}
        self._running: dict[_Key, Future[None]] = {}
        self._executor = ThreadPoolExecutor(1, "notes")  # one study at a time
        self._is_warned = self._is_closed = False

    def close(self) -> None:
        """Stop computing."""
        with self._lock:
            self._is_closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def apply(self, view: Callable[..., Any], route: Any) -> Callable[..., Any]:
        """Add notes and plots to the answers of the one view that has them."""
        if route.rule != "/api/studies/<study_id:int>" or route.method != "GET":
            return view

        def with_notes(study_id: int) -> Any:
            answer = view(study_id=study_id)
            if isinstance(answer, dict) and "best_trials" in answer:
                found = self._config_of(self._storage.get_study_name_from_id(study_id))
                # A study without a file is taken to use this project's own method.
                method = found[1].load_method() if found else load_method(RECIPE)
                if found and "objective_names" not in answer:
                    answer["objective_names"] = [_VALUE]
                for trial in (*answer["trials"], *answer["best_trials"]):
                    if not trial["note"]["body"]:
                        note = self._trial_note(study_id, trial["trial_id"], method)
                        trial["note"]["body"] = note
                self._add_story(study_id, answer)
            return answer

        return with_notes

    def _trial_note(self, study_id: int, trial_id: int, method: Method) -> str:
        trial = self._storage.last_seen(study_id, trial_id)
        if trial is None or not (trial.state.is_finished() or trial.intermediate_values):
            return ""
        address = f"/artifacts/{study_id}/{trial_id}" if self._has_pictures else None
        try:
            return section_markdown(trial_section(run_of(trial), method, address))
        except Exception as error:  # an error in a note must not break the page
            self._warn(f"the note of trial {trial.number}", error)
            return ""

    def _add_story(self, study_id: int, answer: dict[str, Any]) -> None:
        plots = answer["plotly_graph_objects"]
        story = self._story(study_id)
        if story is not None:
            # Plots that workers of older releases stored have the same prefix, and are replaced.
            plots[:] = [plot for plot in plots if not plot["id"].startswith(PLOT_PREFIX)]
            plots += [{"id": i, "graph_object": plot} for i, plot in story.plots.items()]
            note = answer["note"]
            if not note["body"] or self._is_workers(study_id, note["version"]):
                note["body"] = story.note
        plots.sort(key=lambda plot: plot["id"])  # the dashboard returns them in random order

    def _is_workers(self, study_id: int, version: int) -> bool:
        """Whether a worker of an older release wrote this version of the study's note."""
        attrs = self._storage.get_study_system_attrs(study_id)
        return bool(attrs.get(NOTE_VERSION_OF_WORKER) == version)

    def _story(self, study_id: int) -> _Story | None:
        """The latest story; None if there is none yet, or if there is no study file."""
        name = self._storage.get_study_name_from_id(study_id)
        found = self._config_of(name)
        if found is None:
            return None
        key = study_id, name
        trials = self._storage.get_all_trials(study_id, deepcopy=False)
        finished = [t for t in trials if t.state.is_finished()]
        attrs = self._storage.get_study_user_attrs(study_id)
        state = _State(finished, len(trials) - len(finished), attrs)
        with self._lock:
            known = self._stories.get(key)
            if known and (known.state.is_still(state) or time.monotonic() < known.again_at):
                return known
            job = self._running.get(key)
            if self._is_closed:
                return known
            if job is None or job.done():
                job = self._executor.submit(self._compute, key, *found, state, trials)
                self._running[key] = job
        wait([job], _WAIT_S if known else _FIRST_WAIT_S)
        with self._lock:
            return self._stories.get(key)

    def _config_of(self, name: str) -> tuple[str, StudyConfig] | None:
        """The text after ``--study`` in commands, and the study's file."""
        if name not in self._configs and "/" not in name and not name.endswith(".toml"):
            try:
                config = load_study_file(name)
            except UserError:
                return None
            if config.name == name:
                self._configs[name] = (name, config)
        return self._configs.get(name)

    def _compute(
        self,
        key: _Key,
        argument: str,
        config: StudyConfig,
        state: _State,
        trials: Sequence[FrozenTrial],
    ) -> None:
        started = time.thread_time()
        note, plots = "", dict[str, str]()
        try:
            data = StudyData(
                config=config,
                study_argument=argument,
                url=str(self._storage.engine.url),
                attrs=state.attrs,
                runs=runs_of(trials),
                beats=(),
                now=datetime.now(UTC),
                references=read_references(None),
            )
            document = report_of(data)
            note, plots = to_markdown(document.only(NOTE_SECTIONS)), to_plotly(document)
        except Exception as error:
            self._warn(f"the note and the plots of study {config.name}", error)
        took_s = time.thread_time() - started
        with self._lock:
            again_at = time.monotonic() + _REST * took_s
            self._stories[key] = _Story(state, note, plots, again_at)

    def _warn(self, what: str, error: Exception) -> None:
        if not self._is_warned:
            warn(f"{what} can't be made: {error!r}; this is not said again")
        self._is_warned = True
